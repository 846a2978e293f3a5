"""Click commands: parse, call, print, exit code. No logic.

Only click is imported here; each command loads what it needs, so that `--help` and `verify` start at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
PATH = click.Path(path_type=Path)
FILE = click.Path()
"""Text that may be a file: shells complete it as one, and nothing is asked of it here."""


SETS = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a plan value (repeatable).")
JOBS = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that calibrate; the result is the same.",
)


def _complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from exporter.registry import target_names

    return [name for name in target_names() if name.startswith(incomplete)]


def _targets(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option that names targets; `text` says what becomes of them."""
    return click.option(
        "--target", "targets", multiple=True, metavar="NAME", shell_complete=_complete_target, help=text
    )


class _Examples(click.Command):
    """A command whose help ends with examples, printed as written."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write_text(example)


def _command(*examples: str, name: str | None = None) -> Callable[[Callable[..., None]], click.Command]:
    return cast(
        "Callable[[Callable[..., None]], click.Command]",
        cli.command(name, cls=_Examples, examples=examples, context_settings=CONTEXT),
    )


def _common(function: Callable[..., None]) -> Callable[..., None]:
    """Options that every command has."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
        click.option("-v", "--verbose", is_flag=True, help="Show what libraries print."),
        click.option(
            "--progress",
            type=click.Choice(["auto", "live", "plain", "json", "none"]),
            default="auto",
            show_default=True,
            help="How progress is shown on stderr.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _devices_file(function: Callable[..., None]) -> Callable[..., None]:
    """Which devices.toml is read."""
    option = click.option(
        "--devices", type=PATH, metavar="FILE",
        help="The devices file (default: ./devices.toml, else the one in the user's configuration folder).",
    )  # fmt: skip
    return option(function)


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them, as in `1,2,4`."""

    name = "numbers"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= self.least for part in parts):
            self.fail(f"{value!r} is not a list of whole numbers from {self.least} up, such as 1,2,4", param, ctx)
        return tuple(int(part) for part in parts)


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="edge-exporter", prog_name="edge-exporter")
def cli() -> None:
    """Trained torch models to bundles for edge devices: int8, self-testing, with measured latency.

    Start with `edge-exporter init MODEL --calib DATA`, then `edge-exporter build plan.toml`.
    """


@_command(
    "edge-exporter build plan.toml",
    "edge-exporter build plan.toml --set quantize.observer=entropy --target cpu",
    "edge-exporter build model.py:factory --weights w.safetensors --calib calib.npz --eval test.npz --labels y",
    "edge-exporter build model.onnx --calib calib.npz --output bundles",
)
@click.argument("model", metavar="PLAN|MODEL", type=FILE)
@click.option(
    "--calib", metavar="DATA", type=FILE, help="Calibration data: .npz, .safetensors, folder, file.py:function."
)
@click.option("--eval", "evaluation", metavar="DATA", type=FILE, help="Held-out data that accuracy is measured on.")
@click.option("--labels", metavar="NAME", help="Array in the evaluation data that holds labels.")
@click.option("--weights", metavar="FILE", type=FILE, help="State dict for a factory: .safetensors, .pt, .pth.")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights although they can run code.")
@click.option("--name", help="First part of the bundle's folder name.")
@_targets("Build this target only (repeatable).")
@click.option("--output", type=PATH, default=Path("bundles"), show_default=True, help="Folder for bundles.")
@SETS
@click.option("--no-profile", is_flag=True, help="Do not measure latency; the float variant stays the default.")
@click.option("--keep-going", is_flag=True, help="Go on with other targets when one fails (exit code 8).")
@JOBS
@_common
def build(**options: Any) -> None:
    """Build one bundle per target from a plan, or straight from a model."""
    from exporter import commands

    commands.build(**options)


@_command(
    "edge-exporter init model.py:factory --weights w.safetensors --calib calib.npz",
    "edge-exporter init model.py:factory --calib calib.npz --eval test.npz --labels y --target cpu --target mobile",
    "edge-exporter init model.onnx --calib calib.npz --output plans/model.toml",
)
@click.argument("model", type=FILE)
@click.option("--calib", metavar="DATA", type=FILE, help="Calibration data; names and shapes are read off it.")
@click.option("--eval", "evaluation", metavar="DATA", type=FILE, help="Held-out data that accuracy is measured on.")
@click.option("--labels", metavar="NAME", help="Array in the evaluation data that holds labels.")
@click.option("--weights", type=PATH, metavar="FILE", help="State dict for a factory.")
@_targets("Build for this target (repeatable).  [default: cpu]")
@click.option("--output", type=PATH, default=Path("plan.toml"), show_default=True, help="The plan file to write.")
@click.option("--force", is_flag=True, help="Replace a plan that is there.")
@_common
def init(**options: Any) -> None:
    """Write a commented plan for a model."""
    from exporter import commands

    commands.init(**options)


@_command("edge-exporter plan plan.toml", "edge-exporter plan plan.toml --set profile.threads=2 --json", name="plan")
@click.argument("plan", type=PATH)
@_targets("Show this target only (repeatable).")
@SETS
@_common
def plan_(**options: Any) -> None:
    """Show the resolved plan, where each value came from, and what is in the store already."""
    from exporter import commands

    commands.show_plan(**options)


@_command(
    "edge-exporter profile bundles/mnist-cpu-0123456789ab",
    "edge-exporter profile bundles/mnist-cpu-0123456789ab --threads 2 --set-default",
    "edge-exporter profile bundles/mnist-mobile-0123456789ab --runtime tflite-runtime",
    "edge-exporter profile bundles/mnist-arm-0123456789ab --device ssh://pi@raspberrypi.local --threads 1,2,4",
    "edge-exporter profile bundles/mnist-arm-0123456789ab --import printed.json --as camera",
)
@click.argument("bundle", type=PATH)
@click.option(
    "--device", metavar="NAME|ADDRESS",
    help="Measure there: a name from devices.toml, ssh://user@host:port, adb:SERIAL, emulated:NAME (default: here).",
)  # fmt: skip
@_devices_file
@click.option(
    "--threads", type=_Numbers(1), metavar="N,...", default=(),
    help="Threads of the runtime, each in turn (default: as devices.toml, else the bundle's plan, says).",
)  # fmt: skip
@click.option("--affinity", type=_Numbers(0), metavar="CPU,...", default=(), help="Run on these CPUs only.")
@click.option(
    "--runtime", metavar="NAME",
    help="Measure on this runtime of the bundle, as litert or tflite-runtime, in an environment of its own, which is "
    "made when it is first asked for and kept.",
)  # fmt: skip
@click.option("--min-seconds", type=click.FloatRange(0), help="Measure at least this long.")
@click.option("--max-seconds", type=click.FloatRange(0), help="Measure at most this long.")
@click.option("--set-default", is_flag=True, help="Make the variant that is fastest there the default.")
@click.option(
    "--import", "file", type=PATH, metavar="FILE",
    help="Measure nothing: take what `run.py --bench --json` printed on a device that cannot be reached from here.",
)  # fmt: skip
@click.option("--as", "name", metavar="NAME", help="With --import: the device's name (default: the file's).")
@_common
def profile(**options: Any) -> None:
    """Measure a bundle's latency, here or on a device, and write the profile into it."""
    from exporter import device_commands

    device_commands.profile(**options)


@_command(
    "edge-exporter analyze plan.toml",
    "edge-exporter analyze plan.toml --set quantize.observer=mse --rows 0",
    "edge-exporter analyze bundles/mnist-cpu-0123456789ab --json",
)
@click.argument("source", metavar="PLAN|BUNDLE", type=FILE)
@click.option("--variant", metavar="NAME", help="The quantized variant to look at.")
@_targets("Of a plan: look at this target's file only (repeatable).")
@SETS
@click.option(
    "--rows", type=click.IntRange(min=0), default=25, show_default=True, help="Nodes to show; 0 shows them all."
)
@JOBS
@_common
def analyze(**options: Any) -> None:
    """Look at a quantized model node by node: ranges, noise, time; the worst first."""
    from exporter import commands

    commands.analyze(**options)


@_command(
    "edge-exporter verify bundles/mnist-cpu-0123456789ab",
    "edge-exporter verify bundles/mnist-cpu-0123456789ab --isolated --minimum",
    "edge-exporter verify downloaded-bundle --no-run",
)
@click.argument("bundle", type=PATH)
@click.option("--isolated", is_flag=True, help="Self-test in a fresh environment made from its requirements.")
@click.option("--minimum", is_flag=True, help="With --isolated: on the oldest runtime that it claims to run on.")
@click.option("--no-run", is_flag=True, help="Check files only; the self-test runs code from the bundle.")
@_common
def verify(**options: Any) -> None:
    """Check a bundle: every byte, its self-test, its inputs and outputs."""
    from exporter import commands

    commands.verify(**options)


@_command(
    "edge-exporter show bundles/mnist-cpu-0123456789ab", "edge-exporter show bundles/mnist-cpu-0123456789ab --json"
)
@click.argument("bundle", type=PATH)
@_common
def show(**options: Any) -> None:
    """Show one bundle: variants, accuracy, latency, the default and why."""
    from exporter import report_commands

    report_commands.show(**options)


@_command(
    "edge-exporter compare bundles/mnist-cpu-0123456789ab bundles/mnist-cpu-ba9876543210",
    "edge-exporter compare OLD NEW --gate accuracy=-0.5% --gate p50=+5% --gate size=+0%",
    "edge-exporter compare OLD NEW --remeasure --gate p50=+2% --format md",
)
@click.argument("first", metavar="A", type=PATH)
@click.argument("second", metavar="B", type=PATH)
@click.option(
    "--gate", "gates", multiple=True, metavar="NAME=CHANGE",
    help="Fail (exit code 7) where B is further from A than this: accuracy=-0.5%, sqnr=-3 (dB), size=+0%, "
    "memory=+5%, p50=+5%, also p90, p95, p99 (repeatable).",
)  # fmt: skip
@click.option("--variant", metavar="NAME", help="Compare and gate this one (default: gates look at the defaults).")
@click.option("--remeasure", is_flag=True, help="Measure both again, here, in fresh processes in turn.")
@click.option(
    "--rounds", type=click.IntRange(min=6), default=8, show_default=True, metavar="N",
    help="With --remeasure: processes of each.",
)  # fmt: skip
@click.option("--across", is_flag=True, help="Compare although hosts, runtimes, settings or data differ.")
@click.option("--no-latency", is_flag=True, help="Leave latency out.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "md"]), default="text", show_default=True,
    help="How the result is printed.",
)  # fmt: skip
@_common
def compare(**options: Any) -> None:
    """Compare two bundles or profiles: size, operators, accuracy, latency; gates fail with exit code 7."""
    from exporter import report_commands

    report_commands.compare(**options)


@_command(
    "edge-exporter report bundles --open",
    "edge-exporter report bundles --history --ops --output build.html",
    "edge-exporter report bundles --format md --output -",
)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--format", "form", type=click.Choice(["html", "md"]), default="html", show_default=True)
@click.option("--output", metavar="FILE", help="The file to write, `-` for stdout (default: report.html, report.md).")
@click.option("--history", is_flag=True, help="Add what was measured of these models before, over time.")
@click.option("--ops", "operators", is_flag=True, help="Measure time by operator now, in runs of their own.")
@click.option("--open", "show", is_flag=True, help="Open the report in a browser.")
@_common
def report(**options: Any) -> None:
    """Write one page about the bundles in a folder: HTML with plots, or Markdown."""
    from exporter import report_commands

    report_commands.report(**options)


@_command(
    "edge-exporter pack bundles/mnist-cpu-0123456789ab",
    "edge-exporter pack bundles/mnist-cpu-0123456789ab --level 19 --output mnist.tar.zst",
)
@click.argument("bundle", type=PATH)
@click.option("--output", type=PATH, metavar="FILE", help="The file to write (default: beside the bundle, .tar.zst).")
@click.option(
    "--level", type=click.IntRange(1, 22), default=10, show_default=True,
    help="Of zstd: 19 is some percent smaller, and much slower to pack.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@_common
def pack(**options: Any) -> None:
    """Pack a bundle into one compressed file, which `verify`, `show` and `compare` read as it is."""
    from exporter import pack_commands

    pack_commands.pack(**options)


@_command(
    "edge-exporter unpack mnist-cpu-0123456789ab.tar.zst", "edge-exporter unpack mnist.tar.zst --output bundles"
)
@click.argument("file", type=PATH)
@click.option("--output", type=PATH, metavar="DIR", help="Folder that the bundle's goes into (default: the file's).")
@_common
def unpack(**options: Any) -> None:
    """Unpack a packed bundle and check every byte."""
    from exporter import pack_commands

    pack_commands.unpack(**options)


@_command("edge-exporter targets", "edge-exporter targets --json")
@_common
def targets(**options: Any) -> None:
    """List targets, and what is missing to build for them."""
    from exporter import commands

    commands.targets(**options)


@_command("edge-exporter devices", "edge-exporter devices check pi", "edge-exporter devices check ssh://pi@host")
@click.argument("action", type=click.Choice(["list", "check"]), default="list")
@click.argument("name", metavar="[NAME|ADDRESS]", required=False)
@_devices_file
@_common
def devices(**options: Any) -> None:
    """List devices, or look at what one of them has: list, check."""
    from exporter import device_commands

    device_commands.devices(**options)


@_command(
    "edge-exporter cache list",
    "edge-exporter cache gc --older-than 30 --max-size 2",
    "edge-exporter cache clear",
)
@click.argument("action", type=click.Choice(["list", "gc", "clear", "dir"]), default="list")
@click.option("--older-than", type=click.FloatRange(0), default=30.0, show_default=True, metavar="DAYS")
@click.option("--max-size", type=click.FloatRange(0), metavar="GB", help="gc: remove until this much is left.")
@_common
def cache(**options: Any) -> None:
    """Look at or clean the store of results: list, gc, clear, dir."""
    from exporter import commands

    commands.cache(**options)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as service managers, containers and CI send it: what Control-C ends and clears away, it does too."""


def _terminated(number: int, frame: object) -> None:
    # A second one ends the process at once, should clearing away hang.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and turns errors into messages and exit codes."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    try:
        result = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("interrupted: finished steps are kept, the same command goes on from them", err=True)
        return 143 if Terminated in (type(error), type(error.__cause__)) else 130
    except BrokenPipeError:
        # The reader of stdout has gone; what is buffered must not raise again at exit.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from exporter.failures import report

        return report(error, as_json="--json" in (sys.argv[1:] if arguments is None else arguments))
    return result if isinstance(result, int) else 0
