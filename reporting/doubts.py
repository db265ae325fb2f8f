"""Thumbnails of the pictures whose labels the finalists doubt most."""

from __future__ import annotations

from collections.abc import Sequence

from data.cache import open_part
from reporting.gallery import gallery
from reporting.words import short
from selection.doubts import GALLERY, Doubt
from tuning.folder import replace_file
from tuning.session import Session

SHOWN = 12


def write_gallery(doubts: Sequence[Doubt], session: Session, image_size: int) -> None:
    """Write doubts.jpg: the first pictures whose likeliest class is not their label; remove it if there is none.

    They are drawn as networks for pictures of `image_size` pixels see them. Raises StudyError.
    """
    path = session.folder / GALLERY
    first = [one for one in doubts if one.guess != one.label][:SHOWN]
    if not first:
        path.unlink(missing_ok=True)
        return
    part = open_part(session.data, image_size, "validation")
    drawn = gallery(
        (
            part.images[part.indices[one.place]],
            f"{short(one.label, 26)}\nor {short(one.guess, 22)}, {100 * one.guess_share:.0f} %?",
        )
        for one in first
    )
    replace_file(path, lambda temporary: temporary.write_bytes(drawn))
