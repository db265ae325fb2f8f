"""Export of the winner: weights, provenance and test results become a bundle that works without the study."""

from __future__ import annotations

from dataclasses import asdict, replace

from data.cache import open_part
from model.export.bundle import Bundle, BundleError
from model.export.formats import Published, publish
from search_space import Config
from selection.fixed_runs import is_of_another_run
from selection.retraining import (
    Evaluator,
    Winner,
    best_so_far,
    calibrate,
    exported_run,
    find_familiar,
    find_strangers,
    load_network,
)
from tuning import StudyError, ownership
from tuning.environment import processor, versions
from tuning.session import OpenStudy, Session
from tuning.settings import STUDY_ID

CHECKED = 64
"""Number of pictures on which the formats of a bundle are compared."""


def winner_of(study: OpenStudy) -> Winner:
    """Return the retrained winner, or the best trial, untested, of a study that has not been retrained.

    Raises StudyError if there is neither, if retrained.json cannot be used, or if the weights are of another run.
    """
    winner = Winner.load(study.folder) or best_so_far(study)
    if winner.pictures != study.data_identity:
        raise StudyError(
            f"{study.folder / 'retrained.json'} was made with other pictures ({winner.pictures}) than the study "
            f"({study.data_identity}): run python study.py retrain again"
        )
    path, run = study.folder / winner.weights, exported_run(study, winner)
    if run is not None and is_of_another_run(path, run):
        raise StudyError(
            f"{path} holds the weights of another run than {winner.name} of study '{study.name}': put its own file "
            "back, or remove it and run python study.py retrain, which trains what is missing"
        )
    return winner


def export(session: Session, winner: Winner | None = None) -> Published:
    """Write the bundle of `winner`, by default `winner_of(session)`, into best/ in the study's folder.

    Each format is loaded in a fresh process and must agree with the trained network. Raises StudyError if one does
    not, or the weights are gone.
    """
    winner = winner or winner_of(session)
    config, weights = Config.from_dict(winner.config), session.folder / winner.weights
    network, pictures = load_network(config, weights), session.pictures
    temperature, evaluator = winner.temperature, Evaluator(data=session.data, device="cpu")
    if temperature is None:
        fitted = calibrate(config, [weights], evaluator)
        temperature = fitted.temperature
        winner = replace(
            winner,
            calibration=fitted.text,
            sure=fitted.sure,
            sure_text=fitted.sure_text,
            strangers=find_strangers(config, [weights], evaluator),
        )
    strangest, texts = None, {"calibration": winner.calibration, "sure answers": winner.sure_text}
    if (limit := winner.strangers) is not None:
        strangest, texts["strangers"] = limit.strangest, limit.text
        if strangest is not None:
            network.familiar = find_familiar(config, weights, winner.trained_on, evaluator, limit.usual)
    bundle = Bundle(
        model=config.model,
        classes=session.data.classes,
        image_size=config.image_size,
        ranges=pictures.catalog.ranges,
        temperature=temperature,
        sure=winner.sure,
        strangest=strangest,
        provenance={
            "study": session.name,
            STUDY_ID: ownership.identify(session.study),
            "trial": winner.trial,
            "data": {
                "name": pictures.name,
                "source": pictures.citation,
                "pictures": {part: len(places) for part, places in pictures.split.named()},
                "trained on": " + ".join(winner.trained_on),
                "fingerprint": session.data.fingerprint,
                "split": session.data.split,
            },
            "epochs": winner.epochs,
            "seed": winner.seed,
            "config": config.to_dict(),
            "validation": winner.validation,
            **{name: text for name, text in texts.items() if text is not None},
            "trained with": winner.environment,
            "exported with": versions(),
            "exported on": processor(),
        },
        results=winner.results
        and winner.results
        | ({"validation": winner.validation} if "recorded" in winner.validation else {})
        | ({"pretrained": asdict(winner.pretrained)} if winner.pretrained else {}),
    )
    part = open_part(session.data, config.image_size, "validation")
    every = max(1, len(part.indices) // CHECKED)  # the pictures are sorted by class
    sample = part.images[part.indices[::every][:CHECKED]]
    try:
        return publish(session.folder / "best", bundle, network.state_dict(), sample)
    except BundleError as error:
        raise StudyError(str(error)) from error
