"""One inference with the runner: input that fits is answered, any other is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lone_bundle import ABSENT, TOKEN, X, expected_of, flip, infer, reseal, run, save_npz, variant


def test_inference_writes_the_outputs_of_the_default_variant_and_says_why(bundle: Path, tmp_path: Path) -> None:
    given, result = save_npz(tmp_path / "x.npz", x=X, token=TOKEN), tmp_path / "y.npz"
    done = run(bundle, "--input", given, "--output", result)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "variant int8: it is faster here\n"
    with np.load(result, allow_pickle=False) as archive:
        assert archive.files == ["y", "file"]
        np.testing.assert_allclose(archive["y"], expected_of(X, TOKEN, 1.01)["y"], rtol=1e-5)
        np.testing.assert_array_equal(archive["file"], TOKEN + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a bundle", "x.npz", "y.npz"]


def test_a_variant_that_is_asked_for_runs(bundle: Path) -> None:
    assert infer(bundle, "--variant", "fp32") == ("fp32", "variant fp32: asked for\n")


def test_without_a_required_feature_the_next_variant_runs_and_float_only_last(bundle: Path) -> None:
    why = f"this CPU does not show {ABSENT}, which int8 requires\n"
    lacks = variant("int8", requires=(ABSENT,))
    reseal(bundle, variants=(variant("fp32"), lacks, variant("third")))
    assert infer(bundle) == ("third", f"variant third: {why}")
    reseal(bundle, variants=(variant("fp32"), lacks, variant("third", requires=(ABSENT,))))
    assert infer(bundle) == ("fp32", f"variant fp32: {why}")
    assert f"here     fp32 runs by default: {why}" in run(bundle).stdout
    assert infer(bundle, "--variant", "int8") == ("int8", f"warning: {why}variant int8: asked for\n")


def broken_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 and no more")


def plain_npy(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, X)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ({"x": X}, "token: missing"),
        ({"x": X, "token": TOKEN, "z": X}, "z: there is no such input"),
        ({"x": X.astype(np.float64), "token": TOKEN}, "x: dtype is float64 instead of float32"),
        ({"x": X[:, :3], "token": TOKEN}, "x: shape is [2, 3] instead of [batch, 4]"),
        ({"x": X[0], "token": TOKEN}, "x: shape is [4] instead of [batch, 4]"),
        ({"x": X, "token": TOKEN[:1]}, "token: axis 'batch' is 1, but 2 in x"),
        ({"x": X[:0], "token": TOKEN[:0]}, "x: is empty, shape [0, 4]"),
        ({"x": np.array([{}], dtype=object), "token": TOKEN}, "allow_pickle"),
        (broken_zip, "cannot be read as an npz file"),
        (plain_npy, "cannot be read as an npz file"),
        (None, "No such file"),
    ],
)
def test_input_that_does_not_fit_is_refused_and_nothing_is_written(
    bundle: Path, tmp_path: Path, make: Any, words: str
) -> None:
    given, result = tmp_path / "x.npz", tmp_path / "y.npz"
    if callable(make):
        make(given)
    elif make is not None:
        save_npz(given, **make)
    done = run(bundle, "--input", given, "--output", result)
    assert done.returncode == 3
    assert words in done.stderr
    assert done.stdout == ""
    assert not result.exists()


def test_all_misfits_are_named_at_once_with_what_the_model_takes(bundle: Path, tmp_path: Path) -> None:
    done = run(bundle, "--input", save_npz(tmp_path / "x.npz", a=X, x=X[0]), "--output", tmp_path / "y.npz")
    assert done.stderr.splitlines()[1:] == [
        "  - a: there is no such input",
        "  - x: shape is [4] instead of [batch, 4]",
        "  - token: missing",
        "  hint: the model takes x: float32[batch, 4]; token: int64[batch]",
    ]


@pytest.mark.parametrize("place", ["no/such/folder/y.npz", "folder"])
def test_output_that_cannot_be_written_is_an_error_and_leaves_nothing(
    bundle: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", tmp_path / place)
    assert done.returncode == 3
    assert "cannot be written" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a bundle", "folder", "x.npz"]


def test_a_changed_model_is_not_used_for_inference(bundle: Path, tmp_path: Path) -> None:
    flip(bundle / "variants/int8/model.onnx")
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", tmp_path / "y.npz")
    assert done.returncode == 6
    assert "variants/int8/model.onnx: contents differ" in done.stderr


def test_output_inside_the_bundle_is_warned_of(bundle: Path, tmp_path: Path) -> None:
    given = save_npz(tmp_path / "x.npz", x=X, token=TOKEN)
    done = run(bundle, "--input", given, "--output", "y.npz", cwd=bundle)
    assert done.returncode == 0
    assert "warning: y.npz lies in the bundle" in done.stderr
