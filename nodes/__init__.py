"""The pack's nodes. Registers its `models/` folder, so that stock and own loaders list the bundled gvr-tiny."""

from comfy_api.latest import ComfyExtension, io

from .attention_map import SimpleGVRAttentionMap
from .color_match import SimpleGVRColorMatch
from .compare import SimpleGVRCompare
from .curve import SimpleGVRTimestepCurve
from .decode import SimpleGVRDecodeSave
from .degradation import SimpleGVRClassicalDegrade, SimpleGVRFlowDegrade, SimpleGVRModelDegrade
from .evaluate import SimpleGVREvaluate
from .host.bridge import register_model_folders
from .latent import SimpleGVRConditioning, SimpleGVRLatentUpscale, SimpleGVRNullPrompt, SimpleGVRTrim
from .loaders import SimpleGVRLoadModel, SimpleGVRLoadTinyVAE, SimpleGVRLoadUpsampler, SimpleGVRLoadVideoDecoder
from .plan import SimpleGVRPlan
from .sampler import SimpleGVRSampler
from .seams import SimpleGVRSeamMeter
from .sparse_attention import SimpleGVRSparseAttention


class SimpleGVRExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_model_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            SimpleGVRLoadModel,
            SimpleGVRLoadUpsampler,
            SimpleGVRLoadTinyVAE,
            SimpleGVRLatentUpscale,
            SimpleGVRConditioning,
            SimpleGVRSampler,
            SimpleGVRPlan,
            SimpleGVRSparseAttention,
            SimpleGVRNullPrompt,
            SimpleGVRTrim,
            SimpleGVRDecodeSave,
            SimpleGVRFlowDegrade,
            SimpleGVRClassicalDegrade,
            SimpleGVRModelDegrade,
            SimpleGVRTimestepCurve,
            SimpleGVRSeamMeter,
            SimpleGVRColorMatch,
            SimpleGVRCompare,
            SimpleGVRAttentionMap,
            SimpleGVREvaluate,
            SimpleGVRLoadVideoDecoder,
        ]
