"""Loss surfaces and lines: their geometry, BatchNorm on the way, and going on from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rts_hf.reports import landscape
from rts_hf.reports.landscape import filter_normalised_direction, loss_line, loss_surface, read_landscape


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        model[1].running_mean += 0.3 * torch.randn(3)
        model[1].weight += torch.rand(3)
    return model


def images() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    pixels, labels = torch.randn(20, 1, 4, 4, generator=generator), torch.arange(20) % 4
    return [{"pixel_values": pixels[a:b], "labels": labels[a:b]} for a, b in ((0, 12), (12, 20))]


def joined() -> tuple[Tensor, Tensor]:
    return tuple(torch.cat([batch[key] for batch in images()]) for key in ("pixel_values", "labels"))


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_every_filter_of_a_direction_is_as_long_as_the_models_own() -> None:
    model = network()
    direction = filter_normalised_direction(model, seed=3)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert not direction[name].any()
        else:
            lengths = [t.detach().flatten(1).norm(dim=1) for t in (direction[name], parameter)]
            torch.testing.assert_close(*lengths)
    again, other = (filter_normalised_direction(model, seed=seed) for seed in (3, 4))
    assert same(direction, again)
    assert not torch.equal(direction["0.weight"], other["0.weight"])


def test_filters_of_zeros_stay() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0] = 0
    direction = filter_normalised_direction(model, seed=0)["weight"]
    assert not direction[0].any()
    assert direction[1].any()


def test_surface_holds_the_losses_at_the_displaced_weights() -> None:
    model, (pixels, labels) = network(), joined()
    surface = loss_surface(model, images(), points=5, span=0.5, seed=2, progress=False)
    assert surface.x.tolist() == surface.y.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    model.eval()
    directions = [filter_normalised_direction(model, seed) for seed in (4, 5)]
    start = copy_of(model)
    for row, column in ((2, 2), (0, 3), (4, 1)):
        moved = dict(start)
        for name in directions[0]:
            step = float(surface.x[column]) * directions[0][name] + float(surface.y[row]) * directions[1][name]
            moved[name] = start[name] + step
        logits = torch.func.functional_call(model, moved, (pixels,))
        assert surface.loss[row, column] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
        assert surface.accuracy[row, column] == (logits.argmax(-1) == labels).double().mean().item()


def test_line_ends_are_the_models_with_statistics_measured_anew() -> None:
    model, (pixels, labels) = network(9), joined()
    ends = [network(1), network(2)]
    line = loss_line(model, *(end.state_dict() for end in ends), images(), points=7, margin=0.25, progress=False)
    assert line.position.tolist() == [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25]
    middle = network(1)
    with torch.no_grad():
        for parameter, one, other in zip(*(m.parameters() for m in (middle, *ends)), strict=True):
            parameter.copy_((one + other) / 2)
    for position, end in ((1, ends[0]), (3, middle), (5, ends[1])):
        norm = end[1]
        inputs = [end[0](batch["pixel_values"]).detach() for batch in images()]
        norm.running_mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        norm.running_var = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
        loss = cross_entropy(end.eval()(pixels), labels).item()
        assert line.loss[position] == pytest.approx(loss, rel=1e-5)


def test_line_without_batchnorm_ends_at_the_models_exactly() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(16, 4)) for _ in range(2)]
    line = loss_line(models[0], *(m.state_dict() for m in models), images(), points=3, margin=0, progress=False)
    for model, index in zip(models, (0, 2), strict=True):
        surface = loss_surface(model, images(), points=3, progress=False)
        assert (line.loss[index], line.accuracy[index]) == (surface.loss[1, 1], surface.accuracy[1, 1])


def surface_of(model: nn.Module, **more: Any) -> Any:
    return loss_surface(model, images(), **{"points": 3, "progress": False, **more})


ENDS = [network(seed).state_dict() for seed in (1, 2)]


def line_of(model: nn.Module, **more: Any) -> Any:
    return loss_line(model, *ENDS, images(), **{"points": 4, "progress": False, **more})


@pytest.mark.parametrize("measure", [surface_of, line_of])
def test_the_model_is_left_as_it_was(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.train()
    model[4].eval()
    before, random = copy_of(model), torch.get_rng_state()
    measure(model)
    assert same(before, copy_of(model))
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [True, True, True, True, False]
    assert model[1].momentum == 0.1
    monkeypatch.setattr(landscape, "_loss_and_accuracy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(model)
    assert same(before, copy_of(model))
    assert model.training


@pytest.mark.parametrize(("measure", "rows", "columns"), [(surface_of, 3, 3), (line_of, 4, 1)])
def test_goes_on_after_the_last_whole_row(
    measure: Any, rows: int, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(network())
    points: list[int] = []
    evaluate = landscape._loss_and_accuracy

    def counted(*args: Any) -> Any:
        points.append(1)
        if len(points) == stop_at:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(landscape, "_loss_and_accuracy", counted)
    stop_at = 2 * columns + 1
    with pytest.raises(KeyboardInterrupt):
        measure(network(), path=tmp_path / "kept.npz")
    points.clear()
    stop_at = -1
    again = measure(network(), path=tmp_path / "kept.npz")
    assert len(points) == (rows - 2) * columns
    assert all(np.array_equal(one, other) for one, other in zip(whole, again, strict=True))
    points.clear()
    assert np.array_equal(measure(network(), path=tmp_path / "kept.npz").loss, whole.loss)
    assert points == []
    assert [path.name for path in tmp_path.iterdir()] == ["kept.npz"]


def test_a_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    surface_of(network(), path=path)
    for more, name in (({"span": 2.0}, "span 1.0 → 2.0"), ({"seed": 7}, "seed 0 → 7"), ({"points": 5}, "points 3 → 5")):
        with pytest.raises(ValueError, match=f"other settings .{name}"):
            surface_of(network(), path=path, **more)
    with pytest.raises(ValueError, match="weights"):
        surface_of(network(1), path=path)
    with pytest.raises(ValueError, match="images"):
        loss_surface(network(), images()[:1], points=3, path=path, progress=False)
    with pytest.raises(ValueError, match="kind surface → line"):
        line_of(network(), path=path)
    path.write_bytes(b"PK no")
    with pytest.raises(ValueError, match=r"kept\.npz' holds no loss surface or line"):
        surface_of(network(), path=path)


def test_progress_is_shown_and_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    surface_of(network())
    assert capsys.readouterr().err == ""
    surface_of(network(), progress=True)
    assert "9/9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda m: surface_of(m, points=4), "points=4 must be odd"),
        (lambda m: surface_of(m, span=0.0), "span=0.0"),
        (lambda m: line_of(m, points=1), "points=1"),
        (lambda m: line_of(m, margin=-1.0), "margin=-1.0"),
        (lambda m: loss_surface(m, iter(images())), "only once"),
        (lambda m: loss_surface(m, []), "no image"),
        (lambda m: loss_line(m, m.state_dict(), nn.Linear(2, 2).state_dict(), images()), "second does not fit"),
        (
            lambda m: loss_line(m, {**m.state_dict(), "4.bias": torch.zeros(5)}, m.state_dict(), images()),
            "first does not fit the model: '4.bias'",
        ),
    ],
)
def test_illegal_arguments_are_named(measure: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(network())


def test_what_was_measured_can_be_read_without_the_model(tmp_path: Path) -> None:
    model, other = network(), network(1).state_dict()
    paths = [tmp_path / "surface.npz", tmp_path / "line.npz"]
    surface = loss_surface(model, images(), points=3, span=0.5, path=paths[0], progress=False)
    line = loss_line(model, copy_of(model), other, images(), points=4, path=paths[1], progress=False)
    for path, expected in zip(paths, (surface, line), strict=True):
        found = read_landscape(path)
        assert type(found) is type(expected)
        for one, value in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, value)
    kept = dict(np.load(paths[0]))
    np.savez(paths[0], **{**kept, "rows_done": 2})
    with pytest.raises(ValueError, match="was broken off after row 2 of 3"):
        read_landscape(paths[0])
    paths[1].write_text("a poem")
    with pytest.raises(ValueError, match="holds no loss surface or line"):
        read_landscape(paths[1])
