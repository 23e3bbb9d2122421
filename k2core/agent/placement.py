"""Which model a choice means, and where it is put: one backend, the experts on another, a second one in its shadow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from k2core.agent.choice import PATH_CONTEXT, Choice
from k2core.errors import InputError, K2Error, PluginError, Unavailable, UnknownName
from k2core.interfaces import Available, Backend, ChatModel, LoadedModel, ModelProfile, Progress, RoutedExperts
from k2core.plugins import Plugins
from k2core.registration import described


def open_model(plugins: Plugins, choice: Choice, *, progress: Progress | None = None) -> ChatModel:
    """The chat model that *choice* names: a registered one, or the engine over a checkpoint folder."""
    if choice.model in plugins.names("model"):
        entry = plugins.get("model", choice.model)
        if entry.target is not None:
            chat: ChatModel = entry.load()()
            return chat
    return _engine(plugins, choice, progress)


def load_model(plugins: Plugins, choice: Choice, *, progress: Progress | None = None) -> LoadedModel:
    """The checkpoint that *choice* names, loaded as it says.

    Raises:
        UnknownName: no such model or backend.
        Unavailable: a backend cannot work here, or not as it is asked to.
        CheckpointError: the checkpoint is malformed.
        InputError: the model has no checkpoint of its own, the folder is missing, or a place or a limit is none.
    """
    from k2core.engine.limits import accepted

    for text in (choice.moe, choice.shadow):  # before anything is loaded
        if text is not None:
            _placed(text)
    limit = None if choice.shadow_limit is None else accepted(choice.shadow_limit)
    folder = Path(checkpoint_of(plugins, choice)["checkpoint"])
    backend, device = usable(plugins, choice.backend, choice.device)
    experts: RoutedExperts | None = None
    own_limit = choice.expert_bytes
    if choice.moe is not None and not is_at(choice.moe, choice.backend, device):
        other, place = usable(plugins, *_placed(choice.moe))
        rounded = choice.numerics if choice.numerics in other.numerics else "exact"  # experts may round less than the rest
        with of_backend(choice.moe, "load experts"):
            experts = other.load_experts(
                folder, device=place, numerics=rounded, expert_bytes=choice.expert_bytes, progress=progress
            )
        own_limit = None
    try:
        with of_backend(choice.backend, "load the model"):
            loaded = backend.load(
                folder, device=device, numerics=choice.numerics, moe=experts, expert_bytes=own_limit, progress=progress
            )
    except BaseException:
        if experts is not None:
            experts.close()
        raise
    if choice.shadow is None:
        return loaded
    from k2core.engine.shadow import ShadowModel

    try:
        second, place = usable(plugins, *_placed(choice.shadow))
        with of_backend(choice.shadow, "load the model"):
            beside = second.load(folder, device=place, numerics=choice.numerics, progress=progress)
    except BaseException:
        loaded.close()
        raise
    return ShadowModel(loaded, beside, choice.shadow, limit=limit)


@contextmanager
def of_backend(name: str, what: str) -> Iterator[None]:
    """Errors within that are none of ours, nor of the machine, are told as the backend's.

    Raises:
        PluginError: the backend failed in a way that its contract does not know.
    """
    try:
        yield
    except (K2Error, MemoryError):
        raise
    except Exception as error:
        raise PluginError(f"backend '{name}' failed to {what}: {described(error)}") from error


def _placed(text: str) -> tuple[str, str | None]:
    """A backend, and where it is asked to be, of ``NAME`` or ``NAME:DEVICE``.

    Raises:
        InputError: one of them is empty.
    """
    name, colon, device = text.partition(":")
    if not name or (colon and not device):
        what = "device" if name else "backend"
        raise InputError(f"cannot place anything on '{text}': it names no {what}. Give NAME or NAME:DEVICE, e.g. torch:cpu.")
    return name, device or None


def is_at(text: str, backend: str, device: str | None) -> bool:
    """Whether ``NAME`` or ``NAME:DEVICE`` is this backend on this device."""
    name, place = _placed(text)
    return name == backend and place in (None, device)


def usable(plugins: Plugins, name: str, device: str | None = None) -> tuple[Backend, str]:
    """A backend that can work here, and the device to load to: *device*, or the one it takes unasked.

    Raises:
        UnknownName: no such backend.
        Unavailable: it cannot work here, or not with that device; says why.
    """
    backend: Backend = plugins.get("backend", name).make()
    with of_backend(name, "say whether it can work"):
        probed = backend.probe()
    if not isinstance(probed, Available):
        others = [other for other in plugins.names("backend") if other != name]
        raise Unavailable(
            f"backend '{name}' is not available: {probed.reason}" + (f" Others: {', '.join(others)}." if others else "")
        )
    known = tuple(dict.fromkeys((probed.device, *probed.devices)))
    if device is not None and device not in known:
        why = f": {probed.missing[device].rstrip('.')}" if device in probed.missing else ""
        raise Unavailable(f"backend '{name}' has no device '{device}' here{why}. Known: {', '.join(known)}.")
    return backend, device or probed.device


def checkpoint_of(plugins: Plugins, choice: Choice) -> Mapping[str, Any]:
    """The options of the checkpoint that *choice* names: a registered one's, or a folder's.

    Raises:
        InputError: the folder is missing.
        UnknownName: no such model.
    """
    folder = Path(choice.model)
    if choice.model in plugins.names("model"):
        return dict(plugins.get("model", choice.model).options)
    if folder.is_dir():
        return of_folder(folder)
    if "/" in choice.model or folder.exists():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"cannot open model '{choice.model}': it {what}. "
            f"Give a checkpoint folder or one of {', '.join(plugins.names('model'))}."
        )
    raise UnknownName("model", choice.model, plugins.names("model"), "A checkpoint folder's path works too.")


def of_folder(folder: Path) -> dict[str, Any]:
    """The options of a checkpoint folder that nobody registered: it speaks the family's language, its profile is its own.

    Raises:
        CheckpointError: its profile cannot be read.
    """
    from k2core.model.profile import read_profile

    return {"checkpoint": folder, "tokenizer": "kimi", "chat_format": "kimi", "profile": read_profile(folder)}


def _engine(plugins: Plugins, choice: Choice, progress: Progress | None) -> ChatModel:
    from k2core.engine.engine import EngineModel
    from k2core.model.config import Geometry

    options = checkpoint_of(plugins, choice)
    checkpoint = Path(options["checkpoint"])
    usable(plugins, choice.backend, choice.device)
    Geometry.read(checkpoint)  # a folder that is no checkpoint should be told so, not that it has no vocabulary
    tokenizer = plugins.get("tokenizer", options["tokenizer"]).load()(checkpoint)
    chat_format = plugins.get("chat format", options["chat_format"]).load()(tokenizer)
    loaded = load_model(plugins, choice, progress=progress)
    profile = options["profile"] or ModelProfile(context=min(PATH_CONTEXT, loaded.geometry.max_position_embeddings))
    try:
        return EngineModel(
            name=choice.model,
            backend=choice.backend,
            model=loaded,
            tokenizer=tokenizer,
            chat_format=chat_format,
            profile=profile,
            checkpoint=checkpoint,
            cache_bytes=choice.cache_bytes,
            drafts=choice.drafts,
        )
    except BaseException:
        loaded.close()
        raise
