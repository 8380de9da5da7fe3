"""lightly: self-supervised learning over timm's vision transformers."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer, vit_tiny_patch16_224

from .common import images


def masked_encoder() -> None:
    from lightly.models.modules import MaskedVisionTransformerTIMM

    model = MaskedVisionTransformerTIMM(vit=vit_tiny_patch16_224())
    assert model.encode(images(224)).shape == (2, 197, 192)
    keep = torch.arange(5).expand(2, 5)
    assert model.encode(images(224), idx_keep=keep).shape == (2, 5, 192)


def masked_decoder() -> None:
    from lightly.models.modules import MAEDecoderTIMM

    decoder = MAEDecoderTIMM(
        num_patches=196, patch_size=16, embed_dim=192, decoder_embed_dim=32,
        decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    assert decoder.embed(torch.randn(2, 197, 192)).shape == (2, 197, 32)


def causal_transformer() -> None:
    from lightly.models.modules import MaskedCausalVisionTransformer

    model = MaskedCausalVisionTransformer(img_size=64, embed_dim=48, depth=2, num_heads=3)
    mask = torch.zeros(2, model.patch_embed.num_patches + 1, dtype=torch.bool)
    assert model.forward_features(images(), mask=mask).shape[0] == 2


def head_of_ijepa() -> None:
    from lightly.models.modules.heads_timm import AIMPredictionHead

    head = AIMPredictionHead(48, 27, num_blocks=1)
    assert head(torch.randn(2, 3, 48)).shape == (2, 3, 27)


def predictor_of_capi() -> None:
    from lightly.models.modules.capi_predictor_timm import CAPIPredictorTIMM

    assert CAPIPredictorTIMM is not None


def dropping_a_path() -> None:
    from lightly.models import utils

    model = VisionTransformer(img_size=64, embed_dim=48, depth=2, num_heads=3, drop_path_rate=0.2)
    utils.update_drop_path_rate(model, drop_path_rate=0.5)


def positions() -> None:
    from lightly.models import utils

    model = VisionTransformer(img_size=64, embed_dim=48, depth=2, num_heads=3)
    utils.initialize_2d_sine_cosine_positional_embedding(model.pos_embed, True)
