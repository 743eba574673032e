"""ComfyUI-SimpleGVR: latent-cascaded video super-resolution. Nothing is imported until ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import SimpleGVRExtension

    return SimpleGVRExtension()
