"""The command line itself: streams, documents, progress, help, start-up, bugs and interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import COMMAND, FACTORY, QUICK, Workplace, refused

COMMANDS = ("build", "init", "plan", "profile", "verify", "targets", "cache")
NOISY = """
import os


def noisy():
    print("a factory speaks")
    os.write(1, b"a C library speaks on 1\\n")
    os.write(2, b"a C library speaks on 2\\n")
    return make()
"""


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    """A model, data, and one build of them."""
    shared_place.onnx()
    shared_place.quadrants()
    shared_place.factory()
    shared_place.write("noisy.py", FACTORY + NOISY)
    shared_place.built(*FLAGS)
    return shared_place


FLAGS = ("model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["here", "in a process"])
def test_json_is_the_only_thing_on_stdout_whatever_libraries_print(place, how):
    arguments = ("build", "noisy.py:noisy", "--calib", "calib.npz", "--no-profile", "--json")
    result = place.run(*arguments, "--output", "here") if how == "here" else place.process(*arguments)
    assert result.code == 0, result.err
    assert result.document["targets"][0]["built"] is True
    assert result.out.startswith("{")
    assert "speaks" not in result.out + result.err


def test_verbose_shows_what_libraries_print_and_the_log_keeps_it_anyway(place, tmp_path):
    other = Workplace(tmp_path)
    for name in ("noisy.py", "layers.py", "calib.npz"):
        (other / name).write_bytes((place / name).read_bytes())
    arguments = ("build", "noisy.py:noisy", "--calib", "calib.npz", "--no-profile", "--json", "-v")
    result = other.run(*arguments)
    assert result.code == 0, result.err
    for words in ("a factory speaks", "a C library speaks on 1", "a C library speaks on 2"):
        assert f"| {words}" in result.err.splitlines()
    assert json.loads(result.out)
    assert "a factory speaks" in "".join(log.read_text() for log in (other.cache / "logs").glob("*.log"))


def test_the_document_holds_everything_that_the_table_shows(place):
    table = place.run("build", *FLAGS, *QUICK)
    assert table.code == 0
    (target,) = place.build(*FLAGS).document["targets"]
    lines = table.out.splitlines()
    rows = {name: " ".join(line for line in lines if line.startswith(name)) for name in ("onnx", "fp32", "int8")}
    measured = {variant["variant"]: variant for variant in target["profile"]["variants"]}
    for variant in target["variants"]:
        row = rows[variant["name"]]
        assert f"{variant['fidelity']['metric']['value']:.4f}" in row
        assert f"{variant['size'] / 1e3:.1f} kB" in row
        assert f"{measured[variant['name']]['summary']['median'] / 1e6:.3f}" in row
        if variant["coverage"]:
            assert f"{variant['coverage']['quantized']}/{variant['coverage']['eligible']}" in row
            for skipped in variant["coverage"]["skipped"]:
                assert f"{skipped['op']}: {skipped['reason']}" in row
            (output,) = variant["fidelity"]["outputs"]
            for shown in (f"{output['sqnr_db']:.1f}", f"{output['cosine']:.5f}", f"{output['max_abs_error']:.2g}"):
                assert shown in row
    (comparison,) = target["profile"]["comparisons"]
    shown = [float(number) for number in re.findall(r"(\d+\.\d+)x \[(\d+\.\d+), (\d+\.\d+)\]", rows["int8"])[0]]
    assert shown == pytest.approx([comparison["ratio"], comparison["low"], comparison["high"]], abs=0.006)
    assert f"{target['variants'][0]['fidelity']['metric']['reference']:.4f}" in rows["onnx"]
    assert f"default: {target['default']['variant']}: {target['default']['why']}" in lines
    assert f"bundle: {target['bundle']}" in lines
    (gate,) = [line for line in lines if line.startswith("gate: ")]
    for rule in target["variants"][1]["fidelity"]["gate"]["rules"]:
        assert rule in gate
    (latency,) = [line for line in lines if line.startswith("latency in ms: ")]
    for fact in (target["profile"]["host"]["cpu"], target["profile"]["runtime"]["version"], "native"):
        assert fact in latency


def test_piped_output_is_plain(place):
    result = place.process("build", *FLAGS, *QUICK, FORCE_COLOR="", TERM="xterm-256color")
    assert result.code == 0
    assert "\x1b" not in result.out + result.err
    assert "\ncheck data: " in result.err
    sentences = ("bundle: ", "latency in ms: ", "latency: ", "default: ", "gate: ")
    assert all(len(line) <= 120 or line.startswith(sentences) for line in result.out.splitlines())


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")
@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_a_live_screen_and_no_color_takes_the_colours_away(place, no_color):
    import pty

    main, other = pty.openpty()
    environment = place.environment(TERM="xterm-256color", COLUMNS="120")
    environment.pop("NO_COLOR", None)
    environment |= {"NO_COLOR": "1"} if no_color else {}
    process = subprocess.Popen(
        [*COMMAND, "build", *FLAGS, "--no-profile"],
        cwd=place.folder, env=environment, stdin=subprocess.DEVNULL, stdout=other, stderr=other,
    )  # fmt: skip
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait() == 0, shown
    assert b"quadrants" in shown or b"model for cpu" in shown
    colours = [code for code in (b"\x1b[31m", b"\x1b[32m", b"\x1b[35m", b"\x1b[36m", b"\x1b[38;") if code in shown]
    assert colours == [] if no_color else True


def test_json_progress_is_one_event_a_line_with_the_steps_in_order(place):
    result = place.run("build", *FLAGS, "--no-profile", "--progress", "json")
    assert result.code == 0
    events = [json.loads(line) for line in result.err.splitlines()]
    assert {event["type"] for event in events} <= {
        "StepStarted", "StepProgress", "StepFinished", "StepFailed", "Note", "Quiet",
    }  # fmt: skip
    finished = [event["step"].partition(" (")[0] for event in events if event["type"] == "StepFinished"]
    assert finished.index("check data") < finished.index("quantize") < finished.index("cpu: publish")


def test_no_progress_is_silent_on_success(place):
    result = place.run("build", *FLAGS, "--no-profile", "--progress", "none", "--json")
    assert (result.code, result.err) == (0, "")


def test_a_reader_that_goes_away_is_no_traceback(place):
    command = f"{sys.executable} -c 'from exporter.cli import main; main()' cache list | head -c 1 >/dev/null"
    done = subprocess.run(
        ["sh", "-c", command], cwd=place.folder, env=place.environment(), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


# --- help and start-up ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_every_command_ends_with_examples(place, command, flag):
    result = place.run(command, flag)
    assert result.code == 0
    assert "Examples:" in result.out
    assert re.search(rf"^  edge-exporter {command}\b", result.out, re.MULTILINE)


def test_help_lists_every_command(place):
    result = place.run("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.out
    assert place.run("--version").out.startswith("edge-exporter, version ")


@pytest.mark.parametrize("arguments", [("bild",), ("build",), ("build", "a", "b"), ("verify", "x", "--nope"), ()])
def test_a_wrong_command_line_exits_with_2_and_names_the_fault(place, arguments):
    result = place.run(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err
    if arguments:
        assert "Error: " in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "model.onnx", "--calib", "calib.npz", "--labels", "y"), "--eval"),
        (("build", "plan.toml", "--calib", "calib.npz"), "a plan (plan.toml) says this itself"),
        (("verify", "x", "--minimum"), "--isolated"),
        (("verify", "x", "--isolated", "--no-run"), "choose one"),
    ],
)
def test_flags_that_do_not_go_together_exit_with_2(place, arguments, words):
    refused(place.run(*arguments), 2, words, hint=False)


def loaded_by(place: Workplace, *arguments: str) -> set[str]:
    """Modules that a command line loads in a process of its own."""
    code = (
        "import sys, json\n"
        "from exporter.cli import run\n"
        f"code = run({list(arguments)!r})\n"
        "open('loaded.json', 'w').write(json.dumps({'code': code, 'modules': sorted(sys.modules)}))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=place.folder, env=place.environment(), capture_output=True, check=True
    )
    report = json.loads((place / "loaded.json").read_text())
    assert report["code"] == 0
    return set(report["modules"])


HEAVY = {
    "PIL", "ai_edge_litert", "jinja2", "litert_torch", "matplotlib", "onnx", "onnxruntime", "onnxscript", "openvino",
    "safetensors", "torch", "torch_pruning", "zstandard",
}  # fmt: skip


@pytest.mark.parametrize("command", ["help", "verify", "targets"])
def test_commands_that_only_look_load_no_library_that_builds(place, command):
    (bundle,) = place.bundles()[:1]
    arguments = {"help": ("--help",), "verify": ("verify", str(bundle)), "targets": ("targets",)}[command]
    loaded = loaded_by(place, *arguments)
    assert not loaded & HEAVY
    if command == "help":
        assert not loaded & {"numpy", "exporter.pipeline.build", "exporter.sources.factory"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_commands(place, shell):
    script = "from exporter.cli import cli; cli(prog_name='edge-exporter')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place.folder, capture_output=True, text=True, check=True,
        env=place.environment(_EDGE_EXPORTER_COMPLETE=f"{shell}_source"),
    )  # fmt: skip
    assert "edge-exporter" in done.stdout
    assert "_EDGE_EXPORTER_COMPLETE" in done.stdout


def test_completion_works_through_the_entry_point(place):
    words = {"_EDGE_EXPORTER_COMPLETE": "bash_complete", "COMP_WORDS": "edge-exporter ver", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'edge-exporter'; from exporter.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place.folder, capture_output=True, text=True, check=True,
        env=place.environment(**words),
    )  # fmt: skip
    assert done.stdout.strip() == "plain,verify"


# --- bugs and interruption -----------------------------------------------------------------------------------------


def test_a_bug_of_ours_exits_with_1_one_line_and_a_log_that_can_be_sent(place, monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    monkeypatch.setattr("exporter.pipeline.build.Job", broken)
    result = place.run("build", *FLAGS, "--no-profile", "--json")
    assert result.code == 1
    assert json.loads(result.out)["exit_code"] == 1
    first, hint = result.err.splitlines()[-2:]
    assert first == "error: a bug in edge-exporter: AttributeError: 'NoneType' object has no attribute 'shape'"
    assert "Traceback" not in result.err
    log = hint.rpartition("log: ")[2]
    assert log.startswith(str(place.cache))
    text = Path(log).read_text()
    for words in ("Traceback (most recent call last)", "AttributeError", "torch 2", "onnxruntime 1", "python 3"):
        assert words in text


def test_a_bug_inside_a_step_is_a_bug_and_is_not_blamed_on_a_library(place, monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        raise AttributeError("boom")

    monkeypatch.setattr("exporter.quantize.static.coverage_of", broken)
    result = place.run("build", *FLAGS, "--no-profile", "--set", "quantize.observer=percentile")
    # The fault lies in this test's file, which is not ours: a library's failure names the place it came from.
    assert result.code == 5
    assert "boom" in result.err


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_so_and_publishes_nothing(place, tmp_path, number, code):
    other = Workplace(tmp_path)
    other.write("slow.py", "import time\n\n\ndef make():\n    print('begun', flush=True)\n    time.sleep(60)\n")
    (other / "calib.npz").write_bytes((place / "calib.npz").read_bytes())
    process = subprocess.Popen(
        [*COMMAND, "build", "slow.py:make", "--calib", "calib.npz", "--progress", "json", "-v"],
        cwd=other.folder, env=other.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Shells start what runs in the background with this signal ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    logs = other.cache / "logs"
    deadline = time.monotonic() + 60
    while not any("begun" in log.read_text() for log in logs.glob("*.log")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert other.bundles() == []
