"""Which operators of a .tflite file a delegate computes, out of the nodes that a runtime lists."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runner.tflite_runtime import DELEGATED, Session, _taken

Node = dict[str, Any]


class Interpreter:
    """As much of one as a session without inputs and outputs asks for."""

    def __init__(self, nodes: list[Node] | None) -> None:
        if nodes is not None:
            self._get_ops_details = lambda: nodes

    def get_signature_list(self) -> dict[str, Any]:
        return {"serving_default": {}}

    def get_signature_runner(self, name: str) -> Interpreter:
        return self

    def get_input_details(self) -> dict[str, Any]:
        return {}

    def get_output_details(self) -> dict[str, Any]:
        return {}


def node(kind: str, inputs: list[int], outputs: list[int]) -> Node:
    return {"op_name": kind, "inputs": inputs, "outputs": outputs}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Node], set[int], Node]:
    """Operators (the n-th makes tensor n + 1, tensor 0 goes in), a set of them, and the node that stands for it."""
    count = draw(st.integers(1, 12))
    operators = [
        node("ADD", draw(st.lists(st.integers(0, number), min_size=1, max_size=3)), [number + 1])
        for number in range(count)
    ]
    chosen = draw(st.sets(st.integers(0, count - 1), min_size=1))
    within = {number + 1 for number in chosen}
    into = {tensor for number in chosen for tensor in operators[number]["inputs"]} - within
    elsewhere = {tensor for number in range(count) if number not in chosen for tensor in operators[number]["inputs"]}
    unused = within - {tensor for one in operators for tensor in one["inputs"]}
    return operators, chosen, node(DELEGATED, sorted(into), sorted(within & elsewhere | unused))


@given(graphs())
def test_it_is_all_between_the_delegates_inputs_and_its_outputs(graph: tuple[list[Node], set[int], Node]) -> None:
    operators, chosen, delegate = graph
    assert _taken(operators, [delegate]) == chosen


def test_a_session_counts_operators_and_no_delegates() -> None:
    nodes = [node("CONV_2D", [0, 1], [2]), node("CUMSUM", [2], [3]), node(DELEGATED, [0, 1], [2])]
    assert Session(Interpreter(nodes)).delegation() == {"delegate": "XNNPACK", "operators": 1, "of": 2}


@pytest.mark.parametrize(("nodes", "found"), [(None, (None, None)), ([{"name": "ADD"}], (None, None)), ([], (0, 0))])
def test_what_a_runtime_does_not_tell_is_unknown_and_not_nothing(
    nodes: list[Node] | None, found: tuple[int | None, int | None]
) -> None:
    delegation = Session(Interpreter(nodes)).delegation()
    assert (delegation["operators"], delegation["of"]) == found
