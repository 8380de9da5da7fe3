"""torch.hub entry points: every model of the registry, ``torch.hub.load(repo, name, ...)``."""

import featnet as _featnet  # here: torch.hub.list asks for names when the path is gone again

dependencies = ["torch", "safetensors", "huggingface_hub"]


def __getattr__(name):
    if name.startswith("_") or not _featnet.is_model(name):
        raise AttributeError(f"hubconf has no entry point {name!r}")
    build = _featnet.model_entrypoint(name)

    def entry(*args, **kwargs):
        return build(*args, **kwargs)

    family = _featnet.registry._module_of(name)
    checkpoints = ", ".join(_featnet.list_pretrained((name, f"{name}.*"), module=family)) or "none"
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (
        f"{name}, of the family {family}: featnet.create_model({name!r}, pretrained=False, "
        f"**arguments).\n\nCheckpoints: {checkpoints}."
    )
    return entry


def __dir__():
    return ["dependencies", *_featnet.list_models()]
