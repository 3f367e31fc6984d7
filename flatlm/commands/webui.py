"""flatlm webui FILE [FILE...]"""

import argparse
import dataclasses
import threading
import webbrowser

from flatlm.commands import serve, served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    served.add_arguments(parser, several=True)
    serve.add_server_arguments(parser)
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> int:
    settings = dataclasses.replace(serve.settings_of(args), page=True)
    models = serve.models_of(args, plain=True)
    serve.serve_until_ended(args, settings, models, path="/", then=_open if args.open else lambda address: None)
    return 0


def _open(address: str) -> None:
    # Aside, as a browser in the terminal would keep the server from answering.
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
