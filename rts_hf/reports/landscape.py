"""The loss around a trained model's weights, and between two models' weights, as arrays."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

Batch = Mapping[str, Tensor]


class Surface(NamedTuple):
    """Loss and accuracy on a plane through the weights, which lie at (0, 0).

    Args:
        x: Steps along the first direction, ``(G,)``, increasing.
        y: Steps along the second, ``(G,)``.
        loss: Mean cross-entropy in nats, ``(G, G)``; ``loss[i, j]`` belongs to ``y[i]`` and ``x[j]``.
        accuracy: Share of images, ``(G, G)``.
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


class Line(NamedTuple):
    """Loss and accuracy on the straight line through two models' weights.

    Args:
        position: ``(G,)``, increasing; 0 is the first model and 1 the second.
        loss: Mean cross-entropy in nats, ``(G,)``.
        accuracy: Share of images, ``(G,)``.
    """

    position: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def filter_normalised_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return a random direction in which every filter is as long as the model's own.

    ``d ← d / ‖d‖ · ‖w‖`` for each filter: a slice along the first axis of a parameter of two axes or more, so an output
    channel of a convolution or a row of a matrix. Parameters of one axis (biases, BatchNorm's) get zeros. Steps of the
    same length then mean the same for models whose layers are scaled differently.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> direction = filter_normalised_direction(model, seed=0)
    >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
    True
    >>> direction["bias"]
    tensor([0., 0.])

    Args:
        model: Any module.
        seed: Of the direction; it is drawn on the CPU, from a generator of its own.

    Source: Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018 (arXiv 1712.09913).
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, parameter in model.named_parameters():
        weights = parameter.detach()
        drawn = torch.randn(weights.shape, generator=generator).to(weights)
        if weights.ndim < 2:
            direction[name] = torch.zeros_like(weights)
            continue
        lengths = [t.flatten(1).norm(dim=1).view(-1, *[1] * (weights.ndim - 1)) for t in (drawn, weights)]
        direction[name] = drawn / lengths[0].clamp_min(1e-12) * lengths[1]
    return direction


def loss_surface(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    points: int = 21,
    span: float = 1.0,
    seed: int = 0,
    path: str | Path | None = None,
    progress: bool = True,
) -> Surface:
    """Return the loss at ``w + x·d₁ + y·d₂`` for x and y in [−span, span], along two filter-normalised directions.

    The model is in eval mode, with the running statistics that its BatchNorm layers have at w. Its weights are put
    back bit for bit, whatever happens.

    Args:
        model: A classifier: it gives logits ``(B, C)``, or an object that has them as ``logits``.
        batches: ``pixel_values`` and int64 ``labels``, on the model's device; read once a point.
        points: G of each axis, odd, so that the model itself is one of them.
        span: Greater than 0; 1 is as far as the weights are long.
        seed: Of the two directions, which are drawn from ``2·seed`` and ``2·seed + 1``.
        path: An .npz file that is written after each row, and that a second call goes on from.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If an argument is outside its range, the batches are empty or can be read only once, or ``path``
            holds something else, or the same of other settings, weights or images.
    """
    if not (np.isfinite(span) and span > 0):
        raise ValueError(f"span={span!r} must be a finite number greater than 0, for instance 1.0.")
    axis = _grid(-span, span, points)
    _check_batches(batches)
    settings = {"kind": "surface", "points": points, "span": span, "seed": seed}
    settings |= {"weights": _digest(model.state_dict()), "images": _digest_of_batches(batches)}
    directions = [filter_normalised_direction(model, 2 * seed + index) for index in (0, 1)]
    parameters = dict(model.named_parameters())
    saved = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def at(row: int, column: int) -> tuple[float, float]:
        with torch.no_grad():
            for name, parameter in parameters.items():
                step = float(axis[column]) * directions[0][name] + float(axis[row]) * directions[1][name]
                parameter.copy_(saved[name] + step)
        return _loss_and_accuracy(model, batches)

    with _unchanged(model):
        model.eval()
        loss, accuracy = _measured((points, points), at, path, settings, progress)
    return Surface(axis, axis, loss, accuracy)


def loss_line(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    points: int = 31,
    margin: float = 0.25,
    path: str | Path | None = None,
    progress: bool = True,
) -> Line:
    """Return the loss at ``(1 − t)·w₁ + t·w₂`` for t in [−margin, 1 + margin].

    BatchNorm's running statistics between two models are those of neither, nor their mean: they are measured anew at
    every point, over all batches in train mode, so also at t = 0 and 1, where the loss may differ a little from what
    the model itself gives. Other buffers are interpolated like weights, whole numbers are the first model's. The
    model's own state is put back bit for bit, whatever happens.

    Args:
        model: A classifier of the two models' architecture; as for :func:`loss_surface`.
        first, second: Their ``state_dict``.
        batches: As for :func:`loss_surface`; read once a point, twice where there is BatchNorm.
        points: G, at least 2. Of 31 and a margin of 0.25, two are 0 and 1.
        margin: How far to go beyond either end, at least 0.
        path, progress: As for :func:`loss_surface`; the file is written after each point.

    Raises:
        ValueError: As :func:`loss_surface`, and if the two states do not fit the model.

    Source: Goodfellow et al., ICLR 2015 (arXiv 1412.6544), for the line; Garipov et al., NeurIPS 2018 (arXiv
        1802.10026), for measuring the statistics anew.
    """
    if points < 2 or not (np.isfinite(margin) and margin >= 0):
        raise ValueError(f"points={points!r} must be at least 2, and margin={margin!r} a number of at least 0.")
    position = _spaced(-margin, 1 + margin, points)
    _check_batches(batches)
    state = model.state_dict()
    for name, end in (("first", first), ("second", second)):
        unlike = sorted(set(end) ^ set(state)) or [key for key in state if end[key].shape != state[key].shape]
        if unlike:
            raise ValueError(f"{name} does not fit the model: {unlike[0]!r} differs; both must be of its architecture.")
    settings = {"kind": "line", "points": points, "margin": margin}
    settings |= {"first": _digest(first), "second": _digest(second), "images": _digest_of_batches(batches)}
    ends = [{key: value.detach().clone() for key, value in end.items()} for end in (first, second)]

    def at(row: int, column: int) -> tuple[float, float]:
        t = float(position[row])
        with torch.no_grad():
            for key, target in state.items():
                start, end = (values[key].to(target.device) for values in ends)
                target.copy_(torch.lerp(start, end, t) if start.is_floating_point() else start)
        _measure_statistics(model, batches)
        return _loss_and_accuracy(model, batches)

    with _unchanged(model):
        model.eval()
        loss, accuracy = _measured((points, 1), at, path, settings, progress)
    return Line(position, loss[:, 0], accuracy[:, 0])


def read_landscape(path: str | Path) -> Surface | Line:
    """Return what :func:`loss_surface` or :func:`loss_line` has kept in a file, without the model it is of.

    Args:
        path: The .npz file.

    Raises:
        ValueError: If it holds neither, or the measuring was broken off.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            settings = json.loads(str(kept["settings"]))
            loss, accuracy, done = kept["loss"], kept["accuracy"], int(kept["rows_done"])
            if settings["kind"] == "line":
                position = _spaced(-settings["margin"], 1 + settings["margin"], settings["points"])
                found: Surface | Line = Line(position, loss[:, 0], accuracy[:, 0])
            else:
                axis = _spaced(-settings["span"], settings["span"], settings["points"])
                found = Surface(axis, axis, loss, accuracy)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"path={str(path)!r} holds no loss surface or line ({error}); name another file.") from error
    if done < len(loss):
        raise ValueError(f"path={str(path)!r} was broken off after row {done} of {len(loss)}; measure the rest first.")
    return found


def _measured(
    shape: tuple[int, int],
    at: Callable[[int, int], tuple[float, float]],
    path: str | Path | None,
    settings: dict[str, Any],
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return loss and accuracy at every point of a grid, row by row, going on from the rows that a file holds."""
    rows, columns = shape
    values = np.full((2, rows, columns), np.nan)
    done = 0
    if path is not None and Path(path).exists():
        values, done = _read(Path(path), values.shape, settings)
    with tqdm(total=rows * columns, initial=done * columns, disable=not progress, unit="point") as bar:
        bar.set_description(str(settings["kind"]))
        for row in range(done, rows):
            for column in range(columns):
                values[:, row, column] = at(row, column)
                bar.update()
            if path is not None:
                _write(Path(path), values, row + 1, settings)
    return values[0], values[1]


def _write(path: Path, values: np.ndarray, done: int, settings: dict[str, Any]) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, loss=values[0], accuracy=values[1], rows_done=done, settings=json.dumps(settings))
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _read(path: Path, shape: tuple[int, ...], settings: dict[str, Any]) -> tuple[np.ndarray, int]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = json.loads(str(kept["settings"]))
            values, done = np.stack([kept["loss"], kept["accuracy"]]), int(kept["rows_done"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"path={str(path)!r} holds no loss surface or line ({error}); name another file.") from error
    unlike = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
    if unlike or values.shape != shape:
        shown = ", ".join(f"{name} {found.get(name)} → {settings.get(name)}" for name in unlike)
        raise ValueError(
            f"path={str(path)!r} holds what was measured with other settings ({shown}); give the same, or delete it."
        )
    return values, done


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give the model back its weights, buffers and modes after the ``with`` block."""
    modes = [(module, module.training) for module in model.modules()]
    state = model.state_dict()
    saved = {key: value.detach().clone() for key, value in state.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for key, value in saved.items():
                state[key].copy_(value)
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def _loss_and_accuracy(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    loss, correct, count = 0.0, 0, 0
    for batch in batches:
        outputs, labels = model(batch["pixel_values"]), batch["labels"]
        logits = getattr(outputs, "logits", outputs).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count


@torch.no_grad()
def _measure_statistics(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Set BatchNorm's running statistics to their means over the batches, dropout left out."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean over all batches, not one that forgets
            norm.train()
        for batch in batches:
            model(batch["pixel_values"])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _grid(low: float, high: float, points: int) -> np.ndarray:
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points={points!r} must be odd and at least 3, so that the model itself is in the middle.")
    return _spaced(low, high, points)


def _spaced(low: float, high: float, points: int) -> np.ndarray:
    return np.round(np.linspace(low, high, points), 12) + 0.0  # 0 is then 0, and not 5e-17 or −0


def _check_batches(batches: Iterable[Any]) -> None:
    if iter(batches) is batches:
        raise ValueError("batches can be read only once, but every point reads them; give a list or a DataLoader.")
    if not any(len(batch["labels"]) for batch in batches):
        raise ValueError("batches hold no image; give one at least.")


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest_of_batches(batches: Iterable[Batch]) -> str:
    parts = [_digest({key: batch[key] for key in ("pixel_values", "labels")}) for batch in batches]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
