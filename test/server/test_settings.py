"""Flags and environment variables of the batch service, and what SGLang's server does with them."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest
from fastapi import FastAPI
from scripted import ScriptedEngine, Service, serve

from sglang.srt.blendserve.server import batch_settings as settings
from sglang.srt.blendserve.server.batch_settings import BatchSettings
from sglang.srt.blendserve.settings import FLAGS as POLICY_FLAGS
from sglang.srt.blendserve.settings import Settings


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "_chosen", None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def parse(*arguments: str) -> BatchSettings:
    parser = argparse.ArgumentParser()
    settings.FLAGS.add_to(parser)
    settings.choose(parser.parse_args(arguments))
    return settings.current()


def test_defaults_are_openais_limits(tmp_path: Path) -> None:
    chosen = parse()
    assert chosen.directory == tmp_path / "sglang-blendserve" / "batch-api"
    assert (chosen.max_requests, chosen.max_file_bytes) == (50_000, 200_000_000)


def test_flags_go_before_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLENDSERVE_BATCH_DIR", "/from/environment")
    monkeypatch.setenv("BLENDSERVE_BATCH_MAX_REQUESTS", "7")
    assert settings.current().directory == Path("/from/environment")
    chosen = parse("--batch-dir", "/from/flag", "--batch-max-file-bytes", "1000000000")
    assert chosen.directory == Path("/from/flag")
    assert chosen.max_requests == 7
    assert chosen.max_file_bytes == 10**9


def test_bad_values_name_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--batch-max-in-flight is 0; .* at least 1"):
        parse("--batch-max-in-flight", "0")
    monkeypatch.setenv("BLENDSERVE_BATCH_MAX_REQUESTS", "many")
    with pytest.raises(ValueError, match="BLENDSERVE_BATCH_MAX_REQUESTS is 'many'"):
        settings.current()


def test_help_teaches() -> None:
    parser = argparse.ArgumentParser()
    settings.FLAGS.add_to(parser)
    text = parser.format_help()
    for field in fields(BatchSettings):
        assert settings.FLAGS.flag_name(field.name) in text
        assert settings.FLAGS.variable_name(field.name) in text


def test_the_policys_bad_values_name_the_flag_too() -> None:
    for arguments, message in (
        (["--blendserve-online-ttft", "1x"], "--blendserve-online-ttft is '1x'; .* above 1x"),
        (["--blendserve-online-tpot", "soon"], "--blendserve-online-tpot is 'soon'; .*(500)"),
        (["--blendserve-overlap-chunk", "0"], "--blendserve-overlap-chunk is 0; .* at least 1"),
        (["--blendserve-overlap-sm", "x"], "--blendserve-overlap-sm is 'x'; .* a number of SMs"),
        (["--blendserve-trace", "/nowhere/x"], "there is no folder /nowhere; create it first"),
    ):
        parser = argparse.ArgumentParser()
        POLICY_FLAGS.add_to(parser)
        given = POLICY_FLAGS.given(parser.parse_args(arguments))
        with pytest.raises(ValueError, match=message):
            Settings(**given)
    with pytest.raises(ValueError, match="--blendserve-pace is 'fast'; choose from auto, marginal"):
        Settings(pace="fast")


def test_the_policy_has_no_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLENDSERVE_DEVICE", "cpu")  # the installation's
    parser = argparse.ArgumentParser()
    POLICY_FLAGS.add_to(parser)
    assert Settings(**POLICY_FLAGS.given(parser.parse_args([]))) == Settings()


@pytest.mark.anyio
async def test_gauges_show_what_is_going_on(directory: Path) -> None:
    from prometheus_client import REGISTRY, generate_latest
    from scripted import line

    from sglang.srt.blendserve.server.activity import Gauges

    async with serve(directory, ScriptedEngine()) as service:
        gauges = Gauges()
        await service.finish((await service.submit([line("a")])).id)
        gauges.show(await service.runner.activity())
        text = generate_latest(REGISTRY).decode()
    assert 'blendserve:batch_batches{status="completed"} 1.0' in text
    assert 'blendserve:batch_batches{status="expired"} 0.0' in text
    assert 'blendserve:batch_open_requests{state="waiting"} 0.0' in text


@pytest.mark.anyio
async def test_api_key_covers_every_route(directory: Path) -> None:
    """SGLang's own middleware, as ``launch_server --api-key`` puts it on."""
    from sglang.srt.utils.auth import add_api_key_middleware

    async with serve(directory, ScriptedEngine()) as service:
        app: FastAPI = service.app
        add_api_key_middleware(app, api_key="secret", admin_api_key=None)
        paths = {(method, path) for path, item in app.openapi()["paths"].items() for method in item}
        assert len(paths) == 13
        for method, path in [*paths, ("get", "/batches")]:
            url = path.format(file_id="file-x", batch_id="batch_x")
            response = await service.http.request(method.upper(), url)
            assert response.status_code == 401, (method, path)
        await with_key(service)


async def with_key(service: Service) -> None:
    response = await service.http.get("/batches", headers={"authorization": "Bearer secret"})
    assert response.status_code == 200
