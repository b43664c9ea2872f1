"""The command line of ``run``: its own flags, and all of SGLang's server behind them."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.batch_file.same_file import first_clash, sidecar_of
from sglang.srt.blendserve.run.deadline import duration
from sglang.srt.blendserve.run.delivery import Delivery, TableDelivery
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.outputs import delivery_of
from sglang.srt.blendserve.run.parts import PART_ROWS, PartsDelivery
from sglang.srt.blendserve.runtime.cpu import defaults as cpu_defaults
from sglang.srt.blendserve.settings import POLICY
from sglang.srt.blendserve.tables import parquet, remote

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

MAX_IN_FLIGHT = 100_000
"""Most requests in the engine at once, under a policy of SGLang's."""

WINDOW = 8192
"""Most requests in the engine at once where a plan over all of them says which go in next."""

MAX_ENGINE_RESTARTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are the command's own; parsed without loading SGLang."""
    parser.usage = "%(prog)s -i INPUT -o OUTPUT --model-path MODEL [options] [SGLang's flags]"
    parser.allow_abbrev = False  # an abbreviation of ours may be a flag of SGLang's
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        metavar="FILE",
        help="requests, one a line in OpenAI's batch format; .jsonl or .jsonl.gz, - for stdin; or "
        "one a row of .parquet (a column body, or messages or prompt and parameters as columns) or "
        "of a folder of such files; also s3://, gs://, hf:// and https://",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE|FOLDER/",
        help="answers, appended as they finish; with .parquet as JSON lines beside it, of which "
        "the table is made at the end, refused lines and all; FOLDER/ gets parts of such a table "
        "as they are done. In an object store (s3://, gs://, hf://) a file is put at the end, and "
        "parts as they are done",
    )
    parser.add_argument(
        "--model-path", "--model", required=True, metavar="MODEL", help="model folder or name"
    )
    parser.add_argument(
        "--policy",
        "--schedule-policy",
        default=POLICY,
        metavar="POLICY",
        help="how SGLang orders the requests: blendserve, fcfs, lpm, ... (default: %(default)s)",
    )
    parser.add_argument(
        "--errors",
        type=Path,
        metavar="FILE",
        help="lines that got no answer, and why (default: OUTPUT with .errors before its suffix)",
    )
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help="write the summary there too, as JSON"
    )
    parser.add_argument(
        "--part-rows",
        type=_positive,
        default=PART_ROWS,
        metavar="N",
        help="rows of a part, of an output FOLDER/ (default: %(default)s)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="FOLDER",
        help="where the results are kept until they are put, of an output that is not on this "
        "machine (default: NAME.run here)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that wrote OUTPUT: answer only the lines it left out",
    )
    again.add_argument(
        "--retry-errors",
        action="store_true",
        help="go on as with --resume, and answer the lines of the error file again",
    )
    again.add_argument("--overwrite", action="store_true", help="discard what OUTPUT holds")
    parser.add_argument(
        "--max-in-flight",
        type=_positive,
        metavar="N",
        help="most requests in an engine at once. Under the policy blendserve, a batch of more is "
        "tokenized and planned as a whole before the engine, beside the output, and the engine "
        f"gets the requests that the plan has next (default: {WINDOW:,}; {MAX_IN_FLIGHT:,} under "
        "other policies)",
    )
    parser.add_argument(
        "--engines",
        type=_positive,
        default=1,
        metavar="N",
        help="answer with N engines, fed from one plan: each gets the GPUs that --tp-size says, or "
        "its part of the cores. One that dies gives its lines back to the others and is started "
        "again (default: %(default)s)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="start the engines by Ray, on all machines of its cluster: auto, host:port, or local "
        "for a cluster on this machine that ends with the run. Needs ray; model and package must "
        "be on each machine",
    )
    parser.add_argument(
        "--media-root",
        metavar="FOLDER",
        help="folder whose files lines may name as images, videos and recordings, in their "
        "image_url and so on: file:///FOLDER/cat.png, or cat.png (default: none)",
    )
    parser.add_argument(
        "--allow-media-urls",
        metavar="HOSTS",
        help="hosts from which lines' images, videos and recordings are fetched, separated by "
        "commas: images.example.com, *.example.com, * for any (default: none; what a line holds "
        "itself, as data:image/png;base64,..., is always taken)",
    )
    parser.add_argument(
        "--max-engine-restarts",
        type=_not_negative,
        default=MAX_ENGINE_RESTARTS,
        metavar="N",
        help="how often in a row an engine that died is started again without any line answered or "
        "any suspect cleared in between (default: %(default)s)",
    )
    parser.add_argument(
        "--stop-after",
        type=duration,
        metavar="TIME",
        help="stop after so long (5400, 90m, 1h30m, from the start of the command) with what is "
        "done until then, for --resume to go on; the exit status is 75 then. Leave some seconds to "
        "what ends the job by force",
    )
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="stop, as by Ctrl-C, when standard input ends: for programs that start this command, "
        "whose end it then does not outlive",
    )
    parser.add_argument(
        "--help-sglang", action=_SGLangHelp, help="list the flags of SGLang's server and exit"
    )


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command's own flags; the rest, SGLang's, goes to ``server_flags``.

    They are checked by `server_args`, after the input, because that loads SGLang.
    """
    args, rest = parser.parse_known_args(argv)
    args.server_flags = [*rest, *_media_flags(args)]
    if args.stop_with_stdin and args.input == "-":
        parser.error("--stop-with-stdin: the requests come from standard input")
    if args.max_in_flight is None:
        args.max_in_flight = WINDOW if args.policy == POLICY else MAX_IN_FLIGHT
    try:
        delivery = delivery_of(
            args.output,
            args.errors,
            args.work_dir,
            args.part_rows,
            retry=args.retry_errors,
        )
    except ValueError as error:
        parser.error(str(error))
    args.delivery, args.output, args.errors = delivery, delivery.output, delivery.errors
    files: dict[str, str | Path] = {
        "--input": args.input,
        "--output": args.output,
        "--errors": args.errors,
        "OUTPUT.run.json, which --resume needs": sidecar_of(args.output),
    }
    _refuse_output_in_input(parser, args.input, delivery)
    if isinstance(delivery, TableDelivery):
        files["the table"] = delivery.table
    if args.summary is not None:
        files["--summary"] = args.summary
    clash = first_clash(files)
    if clash is not None:
        one, other = clash
        parser.error(
            f"{one} ({files[one]}) and {other} ({files[other]}) are one file. What is written "
            f"there would destroy what {one} is for: give {other} another name."
        )
    return args


def _media_flags(args: argparse.Namespace) -> list[str]:
    """Return what an engine is told of the media that lines may have."""
    flags = []
    if args.media_root is not None:
        flags += ["--blendserve-media-root", os.path.abspath(args.media_root)]
    if args.allow_media_urls is not None:
        flags += ["--blendserve-media-hosts", args.allow_media_urls]
    return flags


def _refuse_output_in_input(
    parser: argparse.ArgumentParser, given: str, delivery: Delivery
) -> None:
    """End the program if the output would be read as a part of the input."""
    if given == "-" or remote.is_remote(given) != (delivery.url is not None):
        return
    if delivery.url is not None:
        clash = f"{delivery.url.rstrip('/')}/".startswith(f"{given.rstrip('/')}/")
    elif isinstance(delivery, PartsDelivery):
        clash = Path(delivery.name).resolve().is_relative_to(Path(given).resolve())
    else:
        clash = (
            isinstance(delivery, TableDelivery)
            and parquet.is_table(given)
            and parquet.lies_in(delivery.table, given)
        )
    if clash:
        parser.error(f"--output {delivery.name} is, or lies in, --input {remote.shown(given)}")


def prepare_environment() -> bool:
    """Set the variables that SGLang reads when it is imported; return whether there is a GPU."""
    # Each waiting request would wake up this often (4 seconds) to see whether an HTTP client has
    # gone. There is none, and 50,000 requests would keep a core busy.
    os.environ.setdefault("SGLANG_REQUEST_STATE_WAIT_TIMEOUT", "86400")
    if cpu_defaults.has_accelerator():
        return True
    cpu_defaults.apply_environment()
    # SGLang's modules warn, in each process, of all that a machine without a GPU cannot do.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning")
    warnings.simplefilter("ignore", UserWarning)
    return False


def server_args(args: argparse.Namespace, *, has_gpu: bool) -> ServerArgs:
    """Return SGLang's settings for the run; ends the program, with status 2, if there is no such
    flag or the policy does not work with one.

    Call it after `prepare_environment`, with what that returned.

    Raises:
        RunFailure: SGLang cannot work with a flag's value, or with the model.
    """
    given = args.server_flags
    if args.model_path.startswith(("/", ".")) and not os.path.isdir(args.model_path):
        raise RunFailure(f"There is no model folder {args.model_path}.")
    argv = ["--model-path", args.model_path, "--schedule-policy", args.policy]
    if os.path.isdir(args.model_path):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is here: ask nobody
    if not has_gpu:
        argv += cpu_defaults.server_flags(args.model_path, given, engines=args.engines)
    if not any(flag.partition("=")[0] == "--log-level" for flag in given):
        argv += ["--log-level", "error"]  # as `sglang.Engine` has it
    argv += given

    from sglang.srt.server_args import prepare_server_args

    from sglang.srt.blendserve.runtime.compat.server_args import release

    if "--config" not in argv:
        _sglang_parser().parse_args(argv)  # for its errors, which fit on a screen
    try:
        prepared = prepare_server_args(argv)
        release.resolve(prepared)
    except Exception as error:  # of any kind: SGLang and transformers look at the model here
        raise RunFailure(f"SGLang cannot start with {args.model_path}: {error}") from error
    return prepared


def _sglang_parser() -> argparse.ArgumentParser:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    parser = argparse.ArgumentParser(
        prog="sglang-blendserve run",
        usage="%(prog)s -i INPUT -o OUTPUT --model-path MODEL [options] [SGLang's flags]\n"
        "`sglang-blendserve run --help` and `--help-sglang` list them.",
    )
    ServerArgs.add_cli_args(parser)
    return parser


class _SGLangHelp(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        prepare_environment()
        _sglang_parser().print_help()
        parser.exit()


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
