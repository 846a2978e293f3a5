"""Static int8 of two quantizers on one model: agreement is said, and what is apart is explained by what was tried."""

from __future__ import annotations

import msgspec
import pytest

from exporter.artifacts import Coverage, Fidelity, OutputFidelity, QuantScheme, Skipped
from exporter.pipeline.crosschecking import cross_check
from exporter.pipeline.results import Int8Side

OWN = QuantScheme(activations="int8")
CPU = QuantScheme(activations="uint8", reduce_range=True)


def side(
    scheme: QuantScheme, *, in_float: tuple[str, ...] = (), target: str = "cpu", **sqnr_db: float | None
) -> Int8Side:
    outputs = tuple(
        OutputFidelity(output=name, sqnr_db=value, cosine=1.0, max_abs_error=0.0) for name, value in sqnr_db.items()
    )
    skipped = tuple(Skipped(node=f"n{place}", op=op, reason="") for place, op in enumerate(in_float))
    return Int8Side(
        target=target,
        variant="int8",
        scheme=scheme,
        coverage=Coverage(eligible=9, quantized=9 - len(skipped), skipped=skipped),
        fidelity=Fidelity(reference="torch", reference_digest="", samples=1, data="evaluation", outputs=outputs),
    )


def never(other: Int8Side, scheme: QuantScheme) -> Int8Side:
    raise AssertionError("what agrees is not looked into")


def test_files_that_agree_are_said_to() -> None:
    verdict = cross_check(side(OWN, target="mobile", y=41.0), [side(CPU, y=38.5)], never)
    assert verdict.lint is None
    assert verdict.text == (
        "int8 was cross-checked: SQNR of 'y' 41.0 dB, in ONNX 38.5 dB (int8 of cpu), on the same data"
    )


def test_the_output_that_is_furthest_apart_counts() -> None:
    verdict = cross_check(side(OWN, target="mobile", y=41.0, z=20.0), [side(OWN, y=41.0, z=30.0)], never)
    assert verdict.lint is not None
    assert verdict.lint.subject == "z"


@pytest.mark.parametrize(("here", "there"), [(None, 90.0), (70.0, 63.0)])
def test_beyond_what_int8_reaches_nothing_is_apart(here: float | None, there: float) -> None:
    assert cross_check(side(OWN, target="mobile", y=here), [side(CPU, y=there)], never).lint is None


def test_the_file_that_was_made_most_alike_is_compared() -> None:
    others = [side(CPU, y=30.0), side(OWN, target="arm", y=40.0)]
    assert "(int8 of arm)" in cross_check(side(OWN, target="mobile", y=41.0), others, never).text


@pytest.mark.parametrize(("reached", "why"), [(40.5, "the scheme is why: "), (31.0, "the scheme is not why: ")])
def test_the_scheme_is_blamed_only_where_making_onnx_alike_brings_it_near(reached: float, why: str) -> None:
    asked = []

    def alike(other: Int8Side, scheme: QuantScheme) -> Int8Side:
        asked.append(scheme)
        return side(scheme, y=reached)

    verdict = cross_check(side(OWN, target="mobile", y=41.0), [side(CPU, y=30.0)], alike)
    assert asked == [OWN]
    assert (
        f"11.0 dB apart: SQNR of 'y' 41.0 dB, in ONNX 30.0 dB (int8 of cpu), on the same data; {why}" in verdict.text
    )
    assert f"with activations = 'int8', reduce_range = False as here ONNX has {reached} dB" in verdict.text


def test_what_one_of_them_leaves_in_float_is_told_where_schemes_are_equal() -> None:
    scheme = msgspec.structs.replace(OWN)
    unrolled = cross_check(
        side(OWN, target="mobile", y=30.0), [side(scheme, in_float=("LSTM", "Add"), y=40.0)], never
    )
    assert unrolled.text.endswith("; ONNX leaves 1 LSTM in float, and here it is unrolled into integer operators")
    others = cross_check(side(OWN, target="mobile", y=30.0), [side(scheme, in_float=("Softmax",), y=40.0)], never)
    assert others.text.endswith("; in float in ONNX: 1 Softmax")
    nothing = cross_check(side(OWN, target="mobile", y=30.0), [side(scheme, y=40.0)], never)
    assert nothing.text.endswith("; scheme and operators in float are the same in both, and explain nothing")


def test_without_an_onnx_file_it_is_said_that_nothing_was_compared() -> None:
    assert cross_check(side(OWN, target="mobile", y=30.0), [], never).text == (
        "int8 was not cross-checked: no static int8 in ONNX was made beside it"
    )


def test_what_each_file_leaves_in_float_by_its_own_names_is_not_said_to_be_alike() -> None:
    own = QuantScheme(activations="int8", exclude=("conv_2d_3",))
    other = QuantScheme(activations="uint8", exclude=("/conv1/Conv",), ops=("Conv",))
    verdict = cross_check(side(own, target="mobile", y=40.0), [side(other, y=30.0)], lambda *_: side(other, y=39.0))
    assert verdict.text.endswith(
        "the scheme is why: with activations = 'int8', nothing left in float by name or type otherwise as "
        "here ONNX has 39.0 dB"
    )


def test_a_file_that_was_judged_on_other_samples_is_judged_again_on_these() -> None:
    other = side(CPU, y=30.0)
    more = msgspec.structs.replace(other, fidelity=msgspec.structs.replace(other.fidelity, samples=2))
    asked: list[QuantScheme] = []

    def alike(given: Int8Side, scheme: QuantScheme) -> Int8Side:
        asked.append(scheme)
        return side(scheme, y=40.0)

    verdict = cross_check(side(OWN, target="mobile", y=41.0), [more], alike)
    assert asked == [CPU]
    assert "in ONNX 40.0 dB" in verdict.text
    assert verdict.lint is None


def test_a_file_that_is_not_the_one_that_is_shipped_is_called_so() -> None:
    verdict = cross_check(side(OWN, target="mobile", y=41.0), [side(CPU, y=40.0)], never, changed=True)
    assert verdict.text.startswith("int8 as first made was cross-checked: SQNR of 'y' 41.0 dB")
    apart = cross_check(side(OWN, target="mobile", y=41.0), [side(OWN, y=30.0)], never, changed=True)
    assert apart.lint is not None
    assert apart.lint.text.startswith("as first made: ")
