"""Where the batch service meets SGLang: its flags, and its routes in ``launch_server``.

`register` is called by the plugin in every process; only the one that serves HTTP does anything
with it.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve import refusals
from sglang.srt.blendserve.server import batch_settings
from sglang.srt.blendserve.settings import POLICY

if TYPE_CHECKING:
    from sglang.srt.blendserve.server.users import Users
    from sglang.srt.blendserve.store.directory import Store

logger = logging.getLogger(__name__)

_SERVER = "sglang.srt.entrypoints.http_server"
_ARGS = "sglang.srt.server_args.ServerArgs"

_store: Store | None = None
_registered = False


def register() -> None:
    """Hook the batch service into SGLang's command line and HTTP server; again it does nothing."""
    global _registered
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang.srt.blendserve.server import online_ids

    if not _registered:
        online_ids.register()
    if _registered:
        return
    _registered = True
    if multiprocessing.parent_process() is not None:
        return  # a scheduler or a detokenizer
    HookRegistry.register(f"{_ARGS}.add_cli_args", _add_flags, HookType.AFTER)
    HookRegistry.register(f"{_ARGS}.from_cli_args", _read_flags, HookType.AFTER)
    HookRegistry.register(f"{_SERVER}.launch_server", _before_launch, HookType.BEFORE)
    HookRegistry.register(f"{_SERVER}._setup_and_run_http_server", _before_http, HookType.BEFORE)


def _add_flags(_: Any, parser: argparse.ArgumentParser) -> None:
    batch_settings.FLAGS.add_to(parser)


def _read_flags(_: Any, __: type, args: argparse.Namespace) -> None:
    with refusals.as_exit():
        batch_settings.choose(args)


def _before_launch(server_args: Any, *_: Any, **__: Any) -> None:
    """Before ``launch_server``: a directory that cannot be used is an error before the model is
    loaded, not after."""
    if _wanted(server_args):
        _check_engines(server_args)
        _users(server_args)
        _open_store()


def _users(server_args: Any) -> Users:
    """Read the users file.

    Raises:
        SystemExit: it is not valid, or there is no key that is the operator's.
    """
    with refusals.as_exit():
        users = batch_settings.current().users()
    if len(users) and not server_args.api_key:
        raise SystemExit(
            "error: --batch-users-file: users have keys, so the operator needs one, too: without "
            "--api-key everybody without a key would see everything. Give --api-key."
        )
    if (user := users.of_header(f"Bearer {server_args.api_key}")) is not None:
        raise SystemExit(
            f"error: --batch-users-file: [{user.name}] has the key of the operator (--api-key). "
            "Give it another."
        )
    return users


def _check_engines(server_args: Any) -> None:
    """Raises SystemExit where this machine has no room for ``--batch-engines``."""
    from sglang.srt.blendserve.engines import placement

    engines = batch_settings.current().engines
    if engines == 1:
        return
    try:
        placement.divided(engines, server_args, threads_given=True)
    except ValueError as error:
        raise SystemExit(f"error: --batch-engines: {error}") from error


def _before_http(
    server_args: Any, tokenizer_manager: Any, template_manager: Any, *_: Any, **__: Any
) -> None:
    """Before the HTTP server runs: add the batch API to its application."""
    if not _wanted(server_args):
        return
    from sglang.srt.entrypoints.http_server import app

    from sglang.srt.blendserve.server.engine_death import end_now, end_with_the_engine
    from sglang.srt.blendserve.server.mount import mount
    from sglang.srt.blendserve.server.served_engine import LaunchedEngine

    store, settings = _open_store(), batch_settings.current()
    end_with_the_engine(tokenizer_manager, store.directory)
    mount(
        app,
        store,
        LaunchedEngine(
            tokenizer_manager,
            template_manager,
            hangs=lambda: end_now(tokenizer_manager, store.directory),
            engines=settings.engines,
            window=settings.max_in_flight,
        ),
        settings,
        metrics=server_args.enable_metrics,
        users=_users(server_args),
        api_key=server_args.api_key,
    )
    logger.info("Batch API: /v1/files, /v1/batches and the page /batches")


def _wanted(server_args: Any) -> bool:
    if server_args.schedule_policy != POLICY:
        return False
    if server_args.tokenizer_worker_num > 1:
        logger.warning(
            "The batch API is off: it needs one process that holds the batches, and "
            "--tokenizer-worker-num is %d. Leave that flag out to have /v1/files and /v1/batches.",
            server_args.tokenizer_worker_num,
        )
        return False
    return True


def _open_store() -> Store:
    """Open the batch directory once.

    Raises:
        SystemExit: it cannot be used; the message says why and what to do.
    """
    global _store
    from sglang.srt.blendserve.store.database import NewerSchema
    from sglang.srt.blendserve.store.directory import Store, StoreUnusable
    from sglang.srt.blendserve.store.disk import DirectoryInUse

    if _store is None:
        directory = batch_settings.current().directory
        try:
            _store = Store(directory)
        except (DirectoryInUse, NewerSchema, StoreUnusable) as error:
            raise SystemExit(f"error: {error}") from error
        logger.info("Batch directory: %s", directory)
    return _store
