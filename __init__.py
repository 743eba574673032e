"""ComfyUI-SimpleGVR: latent-cascaded video super-resolution. Nothing is imported until ComfyUI asks for the nodes."""


async def comfy_entrypoint():
    from .nodes import SimpleGVRExtension

    return SimpleGVRExtension()
