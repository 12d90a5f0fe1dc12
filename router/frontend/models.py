"""The models that clients can ask for, and what their workers' cards say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from router.frontend.errors import ApiError, model_not_found, no_worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core import Target

NOBODY: frozenset[Target] = frozenset()


class ServedModel(NamedTuple):
    """One model, by what all of its workers say."""

    name: str
    embedding: bool = False
    """It makes embeddings, rankings and classifications; else it generates."""
    passes_chats: str = ""
    """Why chats go to its engines as they are, in text mode; empty: they do not."""
    passes_all: bool = False
    """Completions do, too."""
    migration_limit: int | None = None
    """How often a request may go on elsewhere; None: as the router has it."""
    chat_template: str | None = None
    """Jinja source, instead of the template in the model's folder."""
    adapters: frozenset[str] = frozenset()
    """LoRA adapters that some of its workers have loaded; a client asks for `model:adapter`."""


class ModelsOfFleet(Protocol):
    """What is known of the models."""

    def models(self) -> list[str]:
        """Names of those that can be asked for."""

    def served(self) -> Mapping[str, ServedModel]:
        """By name; others may be among them whose workers do not suffice to serve them."""

    def context_tokens(self, model: str) -> int | None:
        """Longest prompt that some worker of a model takes; None: no worker serves it."""

    def without_adapter(self, model: str, adapter: str) -> frozenset[Target]:
        """Targets of a model that have not loaded an adapter."""


class Asked(NamedTuple):
    """What a name in a request stands for."""

    model: ServedModel
    adapter: str | None
    context_tokens: int

    def with_adapter(self, adapter: str | None) -> Asked:
        """The same with the adapter of a field of its own, if there is one.

        :raises ApiError: no worker has loaded it, or the model's name has another.
        """
        if adapter is None or adapter == self.adapter:
            return self
        if self.adapter is not None:
            message = f"lora_path: {adapter!r} is not the adapter in the model's name, {self.adapter!r}"
            raise ApiError(400, message, param="lora_path")
        if adapter not in self.model.adapters:
            loaded = ", ".join(sorted(self.model.adapters)) or "none"
            message = f"no worker of {self.model.name} has loaded the adapter {adapter!r}; loaded: {loaded}"
            raise ApiError(404, message, code="adapter_not_found", param="lora_path")
        return self._replace(adapter=adapter)


class Models:
    """Looks up what clients ask for."""

    def __init__(self, fleet: ModelsOfFleet) -> None:
        self._fleet = fleet

    def __repr__(self) -> str:
        return f"Models({self.names()})"

    def names(self) -> list[str]:
        """All that can be asked for: models, each followed by its adapters as `model:adapter`."""
        served = self._fleet.served()
        return [
            name
            for model in self._fleet.models()
            for name in (model, *(f"{model}:{adapter}" for adapter in sorted(served[model].adapters)))
        ]

    def find(self, name: str) -> Asked:
        """What a name stands for.

        :raises ApiError: no worker serves it.
        """
        models = self._fleet.models()
        if not models:
            raise no_worker("no worker")
        model, adapter = _split(name, models)
        context_tokens = self._fleet.context_tokens(model) if model in models else None
        if context_tokens is None:
            raise model_not_found(name, self.names())
        served = self._fleet.served()[model]
        if adapter is not None and adapter not in served.adapters:
            raise model_not_found(name, self.names())
        return Asked(served, adapter, context_tokens)

    def generating(self, name: str) -> Asked:
        """The same, of a model that generates.

        :raises ApiError: no worker serves it, or it makes embeddings.
        """
        asked = self.find(name)
        if asked.model.embedding:
            raise _other_kind(name, "makes embeddings and generates nothing; ask /v1/embeddings")
        return asked

    def explained(self, name: str | None) -> Asked:
        """What a name stands for, where anything may be asked about: a model that nobody serves, or none."""
        model, adapter = _split(name or "", self._fleet.models())
        return Asked(self._fleet.served().get(model, ServedModel(model)), adapter, 0)

    def embedding(self, name: str) -> Asked:
        """The same, of a model that makes embeddings.

        :raises ApiError: no worker serves it, or it generates.
        """
        asked = self.find(name)
        if not asked.model.embedding:
            raise _other_kind(
                name, "generates and makes no embeddings: its workers were not started with --is-embedding"
            )
        return asked

    def only_embedding(self) -> str:
        """The name of the only model that makes embeddings, for requests that need not name one.

        :raises ApiError: there is none, or there are several.
        """
        served = self._fleet.served()
        names = [name for name in self._fleet.models() if served[name].embedding]
        if len(names) == 1:
            return names[0]
        if not names:
            raise no_worker("none makes embeddings")
        raise ApiError(400, f"model is required: {', '.join(names)} are served here", param="model")

    def generating_names(self) -> list[str]:
        """Models that generate."""
        served = self._fleet.served()
        return [name for name in self._fleet.models() if not served[name].embedding]

    def without_adapter(self, asked: Asked) -> frozenset[Target]:
        """Targets that cannot take a request, as they lack its adapter."""
        return self._fleet.without_adapter(asked.model.name, asked.adapter) if asked.adapter is not None else NOBODY

    def passes(self, name: str, *, chat: bool) -> bool:
        """Whether requests for a name go to the engines as they are, where the router as a whole works in token mode."""
        served = self._fleet.served().get(_split(name, self._fleet.models())[0])
        return served is not None and (served.passes_all or (chat and bool(served.passes_chats)))

    def some_pass(self) -> bool:
        """Whether there is any model of which that is true. O(models)."""
        return any(served.passes_chats for served in self._fleet.served().values())


def _split(name: str, models: list[str]) -> tuple[str, str | None]:
    """A model and its adapter, as SGLang writes the two; a model's own name may have colons, too.

    >>> _split("m:sql", ["m"]), _split("s3://m", ["s3://m"]), _split("s3://m:sql", ["s3://m"])
    (('m', 'sql'), ('s3://m', None), ('s3://m', 'sql'))
    """
    if name in models:
        return name, None
    bases = [model for model in models if name.startswith(f"{model}:") and len(name) > len(model) + 1]
    base = max(bases, key=len, default=None)
    return (name, None) if base is None else (base, name[len(base) + 1 :])


def _other_kind(name: str, what: str) -> ApiError:
    return ApiError(400, f"the model {name!r} {what}", code="wrong_kind_of_model", param="model")
