"""Open a page in the browser: see what a model sees of an image, take parts away, watch the prediction change.

    python -m commands.demo --run runs/quickstart/two_stage-seed0 runs/quickstart/vit-seed0
    python -m commands.demo --model timm/vit_small_patch16_224

The mask of the first model can be edited; further ones are compared with it on the same image. A plain ViT or another
classifier has no mask: it gets explanations only. Example images are those of the test split of the first --run; flags
such as --data.root=DIR say where its files are. Needs the extra demo: pip install '.[demo]'. See docs/demo.md.
"""

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, exit_on_user_error
from common.flags import Parser
from common.plugins import with_plugins

if TYPE_CHECKING:  # slow to import, and not needed for --help
    from engine.demo.subject import Subject

LOCATIONS = ("root", "image_folder", "mask_folder", "box_folder", "class_names")
"""Keys of `data` that say where files are; others would change what the model sees."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'"
)
"""Content security policy: the page may ask nobody but its own server."""


def parse_args(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Known flags, and the rest: where the files of the first run's data set are. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--run", type=Path, nargs="+", default=[], metavar="RUN", help="run folders of train.py")
    parser.add_argument("--model", metavar="NAME", help="a classifier: timm/NAME, torchvision/NAME or hf/NAME")
    parser.add_argument("--weights", default="hub", help="of --model: hub (default), none, or a checkpoint file")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1, for this machine alone"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--max-upload-mb", type=float, default=20.0, metavar="MB", help="largest image file; default: 20"
    )
    args, overrides = parser.parse_known_args(arguments)
    if not args.run and not args.model:
        parser.error("give --run RUN (or several), or --model NAME")
    if not args.max_upload_mb > 0:
        parser.error(f"--max-upload-mb: {args.max_upload_mb} must be positive")
    if args.port is not None and not 0 < args.port < 65536:
        parser.error(f"--port: {args.port} must be from 1 to 65535")
    for flag in overrides:
        key, equals, _ = flag.partition("=")
        if not equals or key not in {f"--data.{name}" for name in LOCATIONS}:
            known = ", ".join(f"--data.{name}=..." for name in LOCATIONS)
            parser.error(f"{flag}: not a flag of this command; of the run's config only {known}")
    return args, overrides


def open_subjects(args: argparse.Namespace, overrides: Sequence[str]) -> "list[Subject]":
    """The models, in the order of the flags. Without the data set of the first run, it has no examples."""
    from engine.demo.subject import open_model, open_run
    from engine.run.machine import pick_device

    device, subjects = pick_device(args.device), []
    for number, run in enumerate(args.run):
        if not run.is_dir():
            hint = "; run `make quickstart` first" if "quickstart" in run.parts else ""
            raise UserError(f"--run: no folder {run}{hint}")
        try:
            subjects.append(open_run(run, device, overrides, examples=number == 0))
        except UserError as error:
            if number:
                raise
            subjects.append(open_run(run, device, examples=False))  # raises again if it is not the data
            print(f"note: no example images, because the test split cannot be read: {error}", file=sys.stderr)
    if args.model:
        subjects.append(open_model(args.model, args.weights, device))
    return subjects


def exposure(host: str, share: bool) -> str:
    """What `--host` and `--share` mean, where the page is open to others; empty if it is not."""
    if share:
        return "--share: anyone with the link can use the page, through Gradio's servers and without a password"
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return (
        ""
        if local
        else f"--host {host}: anyone who reaches this machine's network can use the page, without a password"
    )


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads that nobody else can read, deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="faithful-vit-demo-") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


class Headers:
    """ASGI middleware: forbids the page to ask other servers, or to be shown inside another page."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Add the headers to every reply."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
            await send(message)

        await self.app(scope, receive, with_headers)


def launch(subjects: "Sequence[Subject]", args: argparse.Namespace, block: bool = True) -> Any:
    """Start the server inside `private_folder`; returns Gradio's blocks. `block`: until Ctrl-C. Raises UserError."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from starlette.middleware import Middleware

    from commands.demo_page import build_page
    from commands.demo_session import Session
    from commands.demo_widgets import CSS, THEME

    largest = int(args.max_upload_mb * 1e6)
    page = build_page(Session(subjects, largest)).queue(default_concurrency_limit=4, max_size=64, api_open=False)
    try:
        page.launch(
            server_name=args.host, server_port=args.port, share=args.share, prevent_thread_lock=True, quiet=True,
            footer_links=[], run_history=False, max_file_size=largest, enable_monitoring=False, ssr_mode=False,
            pwa=False, mcp_server=False, state_session_capacity=100, css=CSS, theme=THEME,
            app_kwargs={"middleware": [Middleware(Headers)]}, allowed_paths=[], show_error=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--host {args.host} --port {args.port}: cannot listen there ({error})") from None
    print(f"open {page.share_url or page.local_url}  (Ctrl-C stops it)")
    if block:
        page.block_thread()
    return page


@exit_on_user_error
@with_plugins
def main() -> None:
    """Command line."""
    args, overrides = parse_args()
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo page needs Gradio; install it: python -m pip install -c constraints.txt '.[demo]'")
    if warning := exposure(args.host, args.share):
        print(f"warning: {warning}", file=sys.stderr)
    with private_folder():
        launch(open_subjects(args, overrides), args)


if __name__ == "__main__":
    main()
