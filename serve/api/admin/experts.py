"""Loading, replacing and unloading experts while the server runs."""

import asyncio
import dataclasses
from collections.abc import Set
from pathlib import PurePath
from typing import Any

from merge.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BundleError, load_router
from serve.api.admin.paths import path_within, still_within
from serve.api.errors import ApiError, invalid, model_not_found, shortened
from serve.api.generate.catalogue import AUTO, BACKBONE, Entry
from serve.api.generate.service import Runtime, Service
from serve.api.schemas import (
    LoadExpertRequest,
    LoadLoraRequest,
    ReloadExpertRequest,
    UnloadExpertRequest,
    UnloadLoraRequest,
)
from serve.config import ApiSettings
from serve.engine import UnknownExpert
from serve.experts import EXPERT_SUFFIX, ExpertInfo, ExpertLoadError, ExpertVersion, GenerationMismatch
from serve.router import Router

_BY_NAME = "the router has no head for it: requests must name it"


class ExpertAdmin:
    """Changes the engine's experts, and with them the names that requests may use and what the router may choose.

    A change is atomic, and changes run one at a time: every step that can fail runs before anything is changed.
    """

    def __init__(self, service: Service, settings: ApiSettings):
        self._service = service
        self._settings = settings
        self._lock = asyncio.Lock()

    def cards(self) -> list[dict[str, Any]]:
        """All experts."""
        runtime = self._service.ready()
        routed = _routed(runtime.router)
        return [_card(info, routed) for info in runtime.engine.experts()]

    def card(self, name: str) -> dict[str, Any]:
        """One expert.

        Raises:
            ApiError: 404.
        """
        runtime = self._service.ready()
        return _card(_info(runtime, name), _routed(runtime.router))

    async def load(self, body: LoadExpertRequest) -> dict[str, Any]:
        """Load an expert, or replace one.

        Raises:
            ApiError: 400 or 403 if it cannot be loaded, 409 if the generation is another; nothing changed.
        """
        path = path_within("path", body.path, self._settings.expert_dirs)
        if path.is_dir() and path.suffix != EXPERT_SUFFIX:
            self._check_adapter("path", body.path)
        elif not path.is_file() or path.suffix != EXPERT_SUFFIX:
            raise invalid("path", "path must be an expert's .safetensors file or a LoRA adapter's directory")
        async with self._lock:
            runtime = self._service.ready()
            _check_new(runtime, "name", body.name)
            router = await self._taught(runtime, body)
            info = await _load(runtime, body.name, path, body.expected_generation)
            return self._settle(info, router)

    async def load_adapter(self, body: LoadLoraRequest) -> None:
        """Load a LoRA adapter, with vLLM's request and its errors.

        Raises:
            ApiError: 400 or 403 if it cannot be loaded, 404 if it does not exist; nothing changed.
        """
        name = body.lora_name
        try:
            path = path_within("lora_path", body.lora_path, self._settings.expert_dirs)
            self._check_adapter("lora_path", body.lora_path)
        except ApiError as error:
            raise _no_adapter(error.message) if error.code == "not_found" else error from error
        async with self._lock:
            runtime = self._service.ready()
            _check_new(runtime, "lora_name", name)
            if name in runtime.catalogue.experts and not body.load_inplace:
                message = (
                    f"The lora adapter {name!r} has already been loaded. If you want to load the adapter in place, set "
                    "'load_inplace' to True."
                )
                raise ApiError(400, message, "InvalidUserInput", "lora_name", "already_loaded")
            try:
                info = await runtime.engine.load_expert(name, path)
            except ExpertLoadError as error:
                if error.reason == "missing":
                    raise _no_adapter(str(error)) from error
                raise invalid("lora_path", str(error), "expert_not_loadable") from error
            self._settle(info, runtime.router)

    async def unload_adapter(self, body: UnloadLoraRequest) -> None:
        """Forget a LoRA adapter, with vLLM's request and its errors.

        Raises:
            ApiError: 404.
        """
        name = body.lora_name
        if name not in self._service.ready().catalogue.experts:
            message = f"The lora adapter {shortened(name)!r} cannot be found."
            raise ApiError(404, message, "NotFoundError", "lora_name", "model_not_found")
        await self._unload(name)

    async def reload(self, body: ReloadExpertRequest) -> dict[str, Any]:
        """Read an expert's file again.

        Raises:
            ApiError: as `load`, and 404.
        """
        async with self._lock:
            runtime = self._service.ready()
            path = still_within(_info(runtime, body.name).version.path, self._settings.expert_dirs)
            if path.suffix != EXPERT_SUFFIX:
                for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                    still_within(path / file, self._settings.expert_dirs)
            info = await _load(runtime, body.name, path, body.expected_generation)
            return self._settle(info, runtime.router)

    async def unload(self, body: UnloadExpertRequest) -> dict[str, Any]:
        """Forget an expert; what was admitted with it finishes.

        Raises:
            ApiError: 404, or 409 if the generation is another; nothing changed.
        """
        version = await self._unload(body.name, body.expected_generation)
        return {"object": "expert.unloaded", "id": body.name, "generation": version.generation, "unloaded": True}

    async def _unload(self, name: str, expected_generation: int | None = None) -> ExpertVersion:
        async with self._lock:
            runtime = self._service.ready()
            _info(runtime, name)
            router = runtime.router and await asyncio.to_thread(runtime.router.without, name)
            try:
                version = await runtime.engine.unload_expert(name, expected_generation)
            except UnknownExpert as error:
                raise model_not_found(name, tuple(runtime.catalogue.experts), "name") from error
            except GenerationMismatch as error:
                raise _conflict(error) from error
            self._service.runtime = dataclasses.replace(
                runtime,
                catalogue=runtime.catalogue.without_expert(name),
                router=router,
            )
            return version

    def _check_adapter(self, field: str, path: str) -> None:
        """Return if an adapter's files are in the configured directories, too, wherever links lead.

        Raises:
            ApiError: one is not, or is missing.
        """
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            path_within(field, str(PurePath(path) / file), self._settings.expert_dirs)

    async def _taught(self, runtime: Runtime, body: LoadExpertRequest) -> Router | None:
        """The router with a head for the new expert, if the request has one or prompts for it."""
        router = runtime.router
        if body.router is None and body.prompts is None:
            return router
        field = "router" if body.router is not None else "prompts"
        if router is None:
            raise invalid(field, f"{field}: this server has no router to teach")
        try:
            if body.router is not None:
                directory = path_within("router", body.router, self._settings.expert_dirs)
                source = await asyncio.to_thread(load_router, directory)
                return await asyncio.to_thread(router.with_head_of, source, body.name)
            if self._service.teach is None:
                raise invalid("prompts", "prompts: this server cannot train its router; give a trained one as router")
            rest = (await asyncio.to_thread(router.without, body.name)).model
            return router.of_model(await asyncio.to_thread(self._service.teach, rest, body.name, body.prompts or ()))
        except (BundleError, ValueError) as error:
            raise invalid(field, f"{field}: {error}") from error

    def _settle(self, info: ExpertInfo, router: Router | None) -> dict[str, Any]:
        """Let requests see a loaded expert, also if the server began to drain while it was loaded."""
        runtime, version = self._service.runtime, info.version
        assert runtime is not None
        catalogue, root = runtime.catalogue, str(version.path)
        if version.path.suffix == EXPERT_SUFFIX:
            catalogue = catalogue.with_expert(version.name, Entry(version.digest, root, settings=version.settings))
        else:
            known = catalogue.experts.get(version.name)
            parent = known.parent if known else None
            catalogue = catalogue.with_adapter(version.name, version.digest, root, parent, version.settings)
        self._service.runtime = dataclasses.replace(runtime, catalogue=catalogue, router=router)
        return _card(info, _routed(router))


def _check_new(runtime: Runtime, field: str, name: str) -> None:
    """Return if an expert may have the name, and there are slots for it.

    Raises:
        ApiError: 400 for a name that means something else, 409 without slots.
    """
    if name in (*runtime.catalogue.routing, AUTO, BACKBONE):
        raise invalid(field, f"{name!r} is a name that requests use for something else")
    if runtime.engine.stats().expert_slots == 0:
        message = "this server has no slots for experts; start it with --expert-slots, or --enable-lora for adapters"
        raise ApiError(409, message, code="no_expert_slots")


def _no_adapter(message: str) -> ApiError:
    return ApiError(404, message, "NotFoundError", "lora_path", "not_found")


async def _load(runtime: Runtime, name: str, path: Any, expected_generation: int | None) -> ExpertInfo:
    try:
        return await runtime.engine.load_expert(name, path, expected_generation)
    except GenerationMismatch as error:
        raise _conflict(error) from error
    except ExpertLoadError as error:
        raise invalid("path", str(error), "expert_not_loadable") from error


def _conflict(error: GenerationMismatch) -> ApiError:
    return ApiError(409, str(error), param="expected_generation", code="generation_mismatch")


def _info(runtime: Runtime, name: str) -> ExpertInfo:
    for info in runtime.engine.experts():
        if info.version.name == name:
            return info
    raise model_not_found(name, tuple(runtime.catalogue.experts), "name")


def _routed(router: Router | None) -> Set[str]:
    """The experts that a router may choose."""
    return frozenset(() if router is None else router.names)


def _card(info: ExpertInfo, routable: Set[str]) -> dict[str, Any]:
    version = info.version
    routed = version.name in routable
    return {
        "object": "expert",
        "id": version.name,
        "generation": version.generation,
        "digest": version.digest,
        "path": str(version.path),
        "bytes": info.nbytes,
        "tier": "device" if info.slot is not None else "host" if info.on_host else "disk",
        "slot": info.slot,
        "routed": routed,
        "note": None if routed else _BY_NAME,
    }
