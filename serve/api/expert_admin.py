"""Loading, replacing and unloading experts while the server runs."""

import asyncio
import dataclasses
from collections.abc import Set
from typing import Any

from merge.bundle import BundleError, load_router
from serve.api.catalogue import AUTO, BACKBONE, Entry
from serve.api.errors import ApiError, invalid, model_not_found
from serve.api.expert_paths import path_within, still_within
from serve.api.schemas import LoadExpertRequest, ReloadExpertRequest, UnloadExpertRequest
from serve.api.service import Runtime, Service
from serve.config import ApiSettings
from serve.engine import UnknownExpert
from serve.experts import ExpertInfo, ExpertLoadError, GenerationMismatch
from serve.router import Router

_BY_NAME = "the router does not know it: it is reached by its name alone"


class ExpertAdmin:
    """Changes the engine's experts, and with them the names that requests may use and what the router may choose.

    A change is whole or not at all, and one at a time: whatever can fail does so before anything is changed.
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
            ApiError: 400 or 403 where it cannot be loaded, 409 where the generation is another; nothing changed.
        """
        directories = self._settings.expert_dirs
        path = path_within("path", body.path, directories)
        if not path.is_file() or path.suffix != ".safetensors":
            raise invalid("path", "path must be an expert's .safetensors file")
        async with self._lock:
            runtime = self._service.ready()
            if body.name in (*runtime.catalogue.routing, AUTO, BACKBONE):
                raise invalid("name", f"{body.name!r} is a name that requests use for something else")
            if runtime.engine.stats().expert_slots == 0:
                message = "this server has no slots for experts; start it with --expert-slots"
                raise ApiError(409, message, code="no_expert_slots")
            router = await self._taught(runtime, body)
            info = await _load(runtime, body.name, path, body.expected_generation)
            return self._settle(info, router)

    async def reload(self, body: ReloadExpertRequest) -> dict[str, Any]:
        """Read an expert's file again.

        Raises:
            ApiError: as `load`, and 404.
        """
        async with self._lock:
            runtime = self._service.ready()
            path = still_within(_info(runtime, body.name).version.path, self._settings.expert_dirs)
            info = await _load(runtime, body.name, path, body.expected_generation)
            return self._settle(info, runtime.router)

    async def unload(self, body: UnloadExpertRequest) -> dict[str, Any]:
        """Forget an expert; what was admitted with it finishes.

        Raises:
            ApiError: 404, or 409 where the generation is another; nothing changed.
        """
        async with self._lock:
            runtime = self._service.ready()
            _info(runtime, body.name)
            router = runtime.router and await asyncio.to_thread(runtime.router.without, body.name)
            try:
                version = await runtime.engine.unload_expert(body.name, body.expected_generation)
            except UnknownExpert as error:
                raise model_not_found(body.name, tuple(runtime.catalogue.experts), "name") from error
            except GenerationMismatch as error:
                raise _conflict(error) from error
            self._service.runtime = dataclasses.replace(
                runtime,
                catalogue=runtime.catalogue.without_expert(body.name),
                router=router,
            )
            return {"object": "expert.unloaded", "id": body.name, "generation": version.generation, "unloaded": True}

    async def _taught(self, runtime: Runtime, body: LoadExpertRequest) -> Router | None:
        """The router that knows the new expert, as far as the request teaches it."""
        router = runtime.router
        if body.router is None and body.prompts is None:
            return router
        field = "router" if body.router is not None else "prompts"
        if router is None:
            raise invalid(field, f"{field}: this server's bundle has no router to teach")
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
        """Let requests see a loaded expert, also where the server began to drain while it was loaded."""
        runtime, version = self._service.runtime, info.version
        assert runtime is not None
        catalogue = runtime.catalogue.with_expert(version.name, Entry(version.digest, str(version.path)))
        self._service.runtime = dataclasses.replace(runtime, catalogue=catalogue, router=router)
        return _card(info, _routed(router))


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
