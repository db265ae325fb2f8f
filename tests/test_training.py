"""Training: the loop is the plain one, its schedules are torch's, and the same seed gives the same bits."""

import copy
import json
import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

from model.checkpoint import Checkpoint, load, save
from model.network import GlobalPooling, ModelConfig, MushroomCNN
from model.training import (
    AVERAGING,
    Diverged,
    EpochMetrics,
    OptimizerName,
    Precision,
    TrainingConfig,
    average_into,
    evaluate,
    fit,
    lr_at,
    make_optimizer,
)

CLASSES = 4


class Pictures:
    """Seeded noise whose mean depends on the class, in a fixed order; the last batch may be smaller."""

    def __init__(
        self, count: int, batch_size: int, *, seed: int = 0, size: int = 16, dtype: torch.dtype = torch.float32
    ):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, CLASSES, (count,), generator=generator)
        noise = torch.randn(count, 3, size, size, generator=generator, dtype=dtype)
        self.images = (noise + self.labels[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        self.batch_size = batch_size
        self.classes = CLASSES

    @property
    def class_counts(self) -> tuple[int, ...]:
        return tuple(torch.bincount(self.labels, minlength=self.classes).tolist())

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert n >= 0
        return zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


def network(seed: int = 0) -> MushroomCNN:
    torch.manual_seed(seed)
    return MushroomCNN(ModelConfig(classes=CLASSES, width=0.25, stride_pattern="every", dropout=0.2))


def plain_network(seed: int = 0) -> nn.Module:
    """Return a network without batch norm and dropout, in double precision, whose gradient is a sum over pictures."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), GlobalPooling("avg+max"), nn.Linear(16, CLASSES))
    return nn.Sequential(*layers).double()


def config(**changes: Any) -> TrainingConfig:
    defaults: dict[str, Any] = {"optimizer": "sgd", "lr": 0.02, "schedule": "cosine", "epochs": 3, "batch_size": 16}
    return TrainingConfig(**{**defaults, "weight_decay": 1e-3, **changes})


def run(
    model: nn.Module, train: Pictures, recipe: TrainingConfig, *, seed: int = 7, **options: Any
) -> list[EpochMetrics]:
    return list(fit(model, train, Pictures(24, 10, seed=1), recipe, seed=seed, **options))


def facts(history: list[EpochMetrics]) -> list[dict[str, Any]]:
    """Return the metrics without time and memory."""
    return [{k: v for k, v in m.to_dict().items() if k not in ("seconds", "peak_memory")} for m in history]


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# The loop


def test_fit_is_the_plain_loop_with_torchs_own_optimizer_schedule_and_loss() -> None:
    recipe = config(schedule="one-cycle", lr=0.1, label_smoothing=0.1, weight_decay=0.0)
    train = Pictures(40, 16, dtype=torch.float64)  # 16 + 16 + 8: a short last batch
    model, plain = plain_network(), plain_network()
    history = list(fit(model, train, train, recipe, seed=7))

    optimizer = torch.optim.SGD(
        plain.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, fused=False, foreach=False
    )
    schedule = OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=9, cycle_momentum=False)
    for metrics in history:
        loss_sum, hits = 0.0, 0
        for images, labels in train.epoch(0):
            optimizer.zero_grad()
            logits = plain(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(labels)
            hits += int((logits.argmax(1) == labels).sum())
        assert metrics.train_loss == pytest.approx(loss_sum / 40, rel=1e-6)
        assert metrics.train_top1 == hits / 40
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_learns_an_easy_task(precision: Precision) -> None:
    model = network()
    history = run(model, Pictures(96, 16), config(epochs=8, schedule="one-cycle"), precision=precision)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    assert history[-1].top1 > 0.8
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8, 100])
def test_micro_batches_make_the_step_of_the_whole_batch(micro_batch: int) -> None:
    recipe = config(batch_size=8, label_smoothing=0.1, class_balance="weighted loss")
    train = Pictures(21, 8, dtype=torch.float64)
    whole, parts = plain_network(), plain_network()
    straight = list(fit(whole, train, train, recipe, seed=7))
    history = list(fit(parts, train, train, recipe, seed=7, micro_batch=micro_batch))
    for p, q in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert [m.train_loss for m in history] == pytest.approx([m.train_loss for m in straight], rel=1e-6)
    assert [m.train_top1 for m in history] == [m.train_top1 for m in straight]


def test_the_weighted_loss_is_torchs_with_weights_n_over_c_n_c_divided_by_the_batch() -> None:
    train = Pictures(30, 30, dtype=torch.float64)
    model = plain_network()
    counts = torch.tensor(train.class_counts, dtype=torch.float64)
    weights = 30 / (CLASSES * counts)
    expected = functional.cross_entropy(model(train.images), train.labels, weight=weights, reduction="sum") / 30
    metrics = next(fit(model, train, train, config(class_balance="weighted loss"), seed=7))
    assert metrics.train_loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_weights_of_a_weighted_loss_are_1_on_average_over_the_pictures() -> None:
    model = plain_network()
    head = model.get_submodule("3")
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    train = Pictures(50, 16, dtype=torch.float64)
    metrics = next(
        fit(model, train, train, config(lr=1e-9, class_balance="weighted loss", label_smoothing=0.2), seed=7)
    )
    assert metrics.train_loss == pytest.approx(math.log(CLASSES), rel=1e-5)


def test_oversampling_leaves_the_loss_plain() -> None:
    train = Pictures(48, 16)
    assert facts(run(network(), train, config(class_balance="oversampling"))) == facts(run(network(), train, config()))


def test_weights_and_activations_are_channels_last() -> None:
    model = network()
    run(model, Pictures(32, 16), config(epochs=1))
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


def test_an_epoch_records_its_clock_its_memory_and_its_last_lr() -> None:
    recipe = config(schedule="step", step_period=1, step_factor=0.5)
    history = run(network(), Pictures(48, 16), recipe)
    assert [m.epoch for m in history] == [0, 1, 2]
    assert [m.lr for m in history] == pytest.approx([0.02, 0.01, 0.005])
    assert all(m.seconds > 0 for m in history)
    assert all(m.peak_memory > 50e6 for m in history)  # torch alone takes more


# The finite check


class Poisoned(Pictures):
    """Pictures whose batch 2 in epoch 1 is not finite; keeps the network and the optimizer from before that batch."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, value: float) -> None:
        super().__init__(64, 16)
        self.model, self.optimizer, self.value = model, optimizer, value

    def epoch(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (images, labels) in enumerate(super().epoch(n)):
            if (n, step) == (1, 2):
                self.before = copy.deepcopy((list(self.model.parameters()), self.optimizer.state_dict()["state"]))
                images = images * self.value
            yield images, labels


@pytest.mark.parametrize(
    ("value", "kind", "flush_every"),
    [
        (math.nan, "sgd", 1),
        (math.inf, "sgd", 64),
        (math.nan, "adam", 2),
        (math.inf, "adamw", 64),
        (math.nan, "muon", 1),
        (math.inf, "muon", 64),
    ],
)
def test_no_step_is_made_that_is_not_finite_however_late_it_is_read(value: float, kind: str, flush_every: int) -> None:
    model, recipe = network(), config(optimizer=kind)
    optimizer = make_optimizer(model, recipe)
    train = Poisoned(model, optimizer, value)
    with pytest.raises(Diverged) as raised:
        run(model, train, recipe, optimizer=optimizer, flush_every=flush_every)
    parameters, state = train.before
    for now, before in zip(model.parameters(), parameters, strict=True):
        assert torch.equal(now, before)
    for key, values in optimizer.state_dict()["state"].items():
        for name, value_now in values.items():
            assert torch.equal(value_now, state[key][name]), name
    assert (raised.value.epoch, raised.value.step) == (1, 2)
    assert raised.value.lr == lr_at(6, 4, recipe)


@pytest.mark.parametrize("kind", get_args(OptimizerName))
def test_how_often_the_numbers_are_read_changes_no_bit(kind: str) -> None:
    recipe, train = config(optimizer=kind, lr=0.01), Pictures(72, 16)
    each_step, rarely = network(), network()
    assert facts(run(each_step, train, recipe)) == facts(run(rarely, train, recipe, flush_every=3))
    assert_same_bits(each_step, rarely)


def test_an_optimizer_that_cannot_skip_a_step_is_read_after_every_step() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    train = Poisoned(model, optimizer, math.nan)
    with pytest.raises(Diverged, match="epoch 1, step 2"):
        run(model, train, config(), optimizer=optimizer, flush_every=64)
    for now, before in zip(model.parameters(), train.before[0], strict=True):
        assert torch.equal(now, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_gpu_is_never_waited_for_within_an_epoch() -> None:
    device = torch.device("cuda")
    train = Pictures(96, 16)
    train.images, train.labels = train.images.to(device), train.labels.to(device)
    model = network().to(device)
    epochs = fit(model, train, train, config(), seed=7)
    next(epochs)  # what is loaded only once may wait
    asked = train.epoch

    def watched(n: int) -> Iterator[tuple[Tensor, Tensor]]:
        torch.cuda.set_sync_debug_mode("error")
        yield from asked(n)
        torch.cuda.set_sync_debug_mode("default")

    train.epoch = watched
    try:
        next(epochs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_divergence_names_its_place_and_a_fix_and_survives_pickling() -> None:
    error = Diverged(1, 2, 0.05, "loss nan and gradient norm nan")
    for fact in ("loss nan and gradient norm nan", "epoch 1", "step 2", "lr 0.05", "lower lr", "warm-up"):
        assert fact in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_huge_lr_diverges() -> None:
    with pytest.raises(Diverged):
        run(network(), Pictures(64, 16), config(lr=1e30))


def test_a_validation_loss_that_is_not_finite_is_divergence_too() -> None:
    validation = Pictures(16, 16)
    validation.images[3] = math.inf
    with pytest.raises(Diverged, match="validation loss nan after the epoch at epoch 0, step 1"):
        list(fit(network(), Pictures(32, 16), validation, config(), seed=7))


# Repeatability


def test_the_same_seed_gives_the_same_bits_whatever_happens_between_epochs() -> None:
    train, one, other = Pictures(48, 16), network(), network()
    history = run(one, train, config())
    again: list[EpochMetrics] = []
    for metrics in fit(other, train, Pictures(24, 10, seed=1), config(), seed=7):
        again.append(metrics)
        torch.rand(5)
    assert facts(again) == facts(history)
    assert_same_bits(one, other)


def test_another_seed_gives_another_run() -> None:
    train = Pictures(48, 16)
    assert facts(run(network(), train, config())) != facts(run(network(), train, config(), seed=8))


@pytest.mark.parametrize("schedule", ["step", "cosine", "one-cycle"])
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_a_run_resumed_from_a_file_equals_the_straight_run_bit_for_bit(
    optimizer: str, schedule: str, tmp_path: Path
) -> None:
    recipe = config(optimizer=optimizer, schedule=schedule, lr=0.01, step_period=1.5, warmup_epochs=0.5)
    train, validation = Pictures(40, 16), Pictures(24, 10, seed=1)
    straight, straight_average = network(), network(seed=98)
    history = run(straight, train, recipe, averaged=straight_average)

    for stop in (1, 2):
        first, its_average = network(), network(seed=97)
        its_optimizer = make_optimizer(first, recipe)
        epochs = fit(first, train, validation, recipe, seed=7, averaged=its_average, optimizer=its_optimizer)
        begun = tuple(next(epochs) for _ in range(stop))
        states = {
            "model": first.state_dict(),
            "averaged": its_average.state_dict(),
            "optimizer": its_optimizer.state_dict(),
        }
        save(tmp_path / "last.pt", Checkpoint(attempt=0, job_digest="c", history=begun, **states))

        checkpoint = load(tmp_path / "last.pt")
        resumed, resumed_average = network(seed=99), network(seed=96)
        resumed.load_state_dict(checkpoint.model)
        assert checkpoint.averaged is not None
        resumed_average.load_state_dict(checkpoint.averaged)
        its_optimizer = make_optimizer(resumed, recipe)
        assert checkpoint.optimizer is not None
        its_optimizer.load_state_dict(checkpoint.optimizer)
        rest = run(resumed, train, recipe, averaged=resumed_average, optimizer=its_optimizer, start_epoch=stop)
        assert facts([*checkpoint.history, *rest]) == facts(history)
        assert_same_bits(resumed, straight)
        assert_same_bits(resumed_average, straight_average)


# The average of the weights


def polynomial_decay_weights(steps: int, gamma: int) -> list[float]:
    """Return each step's weight in the average, from the first step: a polynomial of degree gamma in the step."""
    rising = [math.prod(range(t, t + gamma)) for t in range(1, steps + 1)]
    return [value / sum(rising) for value in rising]


@pytest.mark.parametrize("steps", [1, 2, 9, 40])
def test_the_average_is_the_sum_of_all_weights_times_their_polynomial_decay(steps: int) -> None:
    """Batch norm's running statistics are averaged alike; its counter is the last one."""
    average, model = network(), network(seed=1).double()
    average.double()
    generator = torch.Generator().manual_seed(2)
    seen: list[dict[str, Tensor]] = []
    for step in range(steps):
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            else:
                tensor.fill_(step + 1)
        seen.append(copy.deepcopy(model.state_dict()))
        average_into(average, model, step)
    weights = polynomial_decay_weights(steps, round(AVERAGING))
    for name, found in average.state_dict().items():
        if found.is_floating_point():
            expected = sum(weight * state[name] for weight, state in zip(weights, seen, strict=True))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        else:
            assert found == steps, name
    assert_same_bits(model, loaded(seen[-1]))


def loaded(state: dict[str, Tensor]) -> nn.Module:
    model = network().double()
    model.load_state_dict(state)
    return model


def test_the_first_average_is_the_model_whatever_was_there_before() -> None:
    average, model = network(), network(seed=1)
    average_into(average, model, 0)
    assert_same_bits(average, model)


def test_the_metrics_are_those_of_the_average_and_the_model_is_trained_as_without_one() -> None:
    train, validation = Pictures(48, 16), Pictures(24, 10, seed=1)
    model, average, plain = network(), network(seed=5), network()
    for metrics in fit(model, train, validation, config(), seed=7, averaged=average):
        result = evaluate(average, validation)
        found = (metrics.validation_loss, metrics.top1, metrics.top3, metrics.confusion)
        assert found == (result.loss, result.top1, result.top3, result.confusion)
        assert metrics.validation_loss != evaluate(model, validation).loss
        model.train()
    run(plain, train, config())
    assert_same_bits(model, plain)


def test_the_average_is_that_of_the_model_after_every_step() -> None:
    train, validation = Pictures(40, 16, dtype=torch.float64), Pictures(8, 8, dtype=torch.float64)
    average, model = plain_network(), plain_network()
    for _ in fit(model, train, validation, config(), seed=7, averaged=average):
        pass

    stepped, by_hand = plain_network(), plain_network()
    optimizer = make_optimizer(stepped, config())
    for step, (images, labels) in enumerate(batch for _ in range(3) for batch in train.epoch(0)):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, len(train), config())
        optimizer.zero_grad()
        functional.cross_entropy(stepped(images), labels).backward()
        optimizer.step()
        average_into(by_hand, stepped, step)
    for p, q in zip(average.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_a_step_that_is_not_finite_does_not_reach_the_average() -> None:
    model, average, recipe = network(), network(seed=3), config()
    optimizer = make_optimizer(model, recipe)
    with pytest.raises(Diverged):
        run(model, Poisoned(model, optimizer, math.nan), recipe, averaged=average, optimizer=optimizer)
    assert all(tensor.isfinite().all() for tensor in average.state_dict().values())


# Evaluation


def test_evaluation_agrees_with_one_picture_at_a_time() -> None:
    model, pictures = network(), Pictures(23, 8)  # 8 + 8 + 7: an average of averages would differ
    result = evaluate(model, pictures)
    loss, top1, top3 = 0.0, 0, 0
    confusion = [[0] * CLASSES for _ in range(CLASSES)]
    with torch.no_grad():
        for image, label in zip(pictures.images, pictures.labels.tolist(), strict=True):
            logits = model(image[None])[0]
            loss -= torch.log_softmax(logits, 0)[label].item()
            ranked = logits.argsort(descending=True).tolist()
            top1 += ranked[0] == label
            top3 += label in ranked[:3]
            confusion[label][ranked[0]] += 1
    assert result.loss == pytest.approx(loss / 23, rel=1e-5)
    assert (result.top1, result.top3) == (top1 / 23, top3 / 23)
    assert result.confusion == tuple(map(tuple, confusion))


def test_evaluation_changes_nothing_and_does_not_depend_on_the_batch_size() -> None:
    model = network()
    before = copy.deepcopy(model)
    one, other = evaluate(model, Pictures(23, 8)), evaluate(model, Pictures(23, 23))
    assert_same_bits(model, before)
    assert one.confusion == other.confusion
    assert one.loss == pytest.approx(other.loss, rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_of_up_to_three_classes_there_is_no_top3(classes: int) -> None:
    """It would be 1, whatever the network."""
    pictures = Pictures(10, 5)
    pictures.labels.clamp_(max=classes - 1)
    pictures.classes = classes
    assert evaluate(MushroomCNN(ModelConfig(classes=classes, width=0.25)), pictures).top3 is None


def test_evaluation_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture"):
        evaluate(network(), Pictures(0, 8))


def test_metrics_go_through_json_and_know_the_accuracy_of_each_class() -> None:
    metrics = EpochMetrics(
        epoch=2, train_loss=0.1, train_top1=0.2, validation_loss=0.3, top1=0.6, top3=1.0, lr=0.01, seconds=1.5,
        confusion=((3, 1, 0), (0, 0, 0), (1, 0, 1)), peak_memory=123,
    )  # fmt: skip
    assert EpochMetrics.from_dict(json.loads(json.dumps(metrics.to_dict()))) == metrics
    assert metrics.per_class[0] == 0.75
    assert math.isnan(metrics.per_class[1])
    assert metrics.per_class[2] == 0.5


# Schedules and optimizers


def torchs_schedule(name: str, recipe: TrainingConfig, steps_per_epoch: int) -> list[float]:
    total = recipe.epochs * steps_per_epoch
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr, momentum=0.9)
    schedules: dict[str, LRScheduler] = {}
    if name == "one-cycle":
        schedules[name] = OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=total)
    elif name == "cosine":
        schedules[name] = CosineAnnealingLR(optimizer, T_max=total)
    else:
        period = round(recipe.step_period * steps_per_epoch)
        schedules[name] = StepLR(optimizer, step_size=period, gamma=recipe.step_factor)
    found: list[float] = []
    for step in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            schedules[name].step()
    return found


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(15, 33), (2, 5), (7, 1), (1, 4)])
@pytest.mark.parametrize("schedule", ["step", "cosine", "one-cycle"])
def test_without_warm_up_the_schedules_are_torchs(schedule: str, epochs: int, steps_per_epoch: int) -> None:
    recipe = config(schedule=schedule, epochs=epochs, lr=0.1, step_factor=0.3, step_period=2)
    ours = [lr_at(step, steps_per_epoch, recipe) for step in range(epochs * steps_per_epoch)]
    assert ours == pytest.approx(torchs_schedule(schedule, recipe, steps_per_epoch), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_in_equal_steps_and_reaches_lr_on_the_first_step_after_it(schedule: str) -> None:
    recipe = config(schedule=schedule, epochs=4, lr=0.1, warmup_epochs=0.5, step_period=2)
    rise = [lr_at(step, 8, recipe) for step in range(5)]
    assert rise == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert lr_at(5, 8, recipe) <= 0.1


@given(
    schedule=st.sampled_from(["step", "cosine", "one-cycle"]),
    epochs=st.integers(1, 8),
    steps_per_epoch=st.integers(1, 9),
    warmup=st.floats(0, 0.99),
)
def test_every_step_of_every_schedule_has_an_lr_above_0_and_at_most_the_peak(
    schedule: str, epochs: int, steps_per_epoch: int, warmup: float
) -> None:
    recipe = config(schedule=schedule, epochs=epochs, lr=0.1, warmup_epochs=warmup)
    for step in range(epochs * steps_per_epoch):
        assert 0 < lr_at(step, steps_per_epoch, recipe) <= 0.1 * (1 + 1e-12)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW"), ("muon", "Muon")])
def test_an_optimizer_decays_matrices_and_kernels_but_neither_batch_norm_nor_biases(name: str, kind: str) -> None:
    model = network()
    optimizer = make_optimizer(model, config(optimizer=name, weight_decay=0.01))
    assert type(optimizer).__name__ == kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.01 if p.ndim > 1 else 0.0 for p in model.parameters()}


def test_sgd_has_nesterov_momentum() -> None:
    group = make_optimizer(network(), config(momentum=0.8)).param_groups[0]
    assert (group["nesterov"], group["momentum"]) == (True, 0.8)


@pytest.mark.parametrize(("change", "message"), [
    ({"optimizer": "lion"}, "`optimizer` must be one of 'sgd', 'adam', 'adamw', 'muon', but got 'lion'"),
    ({"schedule": "flat"}, "`schedule` must be one of 'step', 'cosine', 'one-cycle', but got 'flat'"),
    ({"class_balance": "yes"}, "`class_balance` must be one of 'none', 'weighted loss', 'oversampling', but got 'yes'"),
    ({"lr": 0.0}, "`0 < lr < inf` must hold, but got 0.0"),
    ({"lr": math.nan}, "`0 < lr < inf` must hold, but got nan"),
    ({"weight_decay": -1}, "`0 <= weight_decay < inf` must hold, but got -1"),
    ({"momentum": 1.0}, "`0 < momentum < 1` must hold, but got 1.0"),
    ({"step_factor": 0}, "`0 < step_factor <= 1` must hold, but got 0"),
    ({"step_period": 0}, "`0 < step_period < inf` must hold, but got 0"),
    ({"epochs": 0}, "`epochs >= 1` must hold, but got 0"),
    ({"warmup_epochs": 3}, "`0 <= warmup_epochs < epochs` must hold, but got 3"),
    ({"batch_size": 1}, "`batch_size >= 2` must hold, but got 1"),
    ({"label_smoothing": 1.0}, "`0 <= label_smoothing < 1` must hold, but got 1.0"),
])  # fmt: skip
def test_a_config_names_the_rule_and_the_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        config(**change)
