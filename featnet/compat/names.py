"""The tables: timm's modules, their names, and where featnet has what these stand for.

A word of a row is a name, or ``timm's=featnet's``; a row's key is the module that has it.
"""

from __future__ import annotations

from collections.abc import Mapping

CREATION = "featnet.compat.creation"
_CREATION = (
    "create_model list_models list_pretrained list_modules is_model is_model_pretrained "
    "model_entrypoint get_pretrained_cfg get_pretrained_cfg_value"
)
_CONFIG = "is_exportable is_scriptable set_exportable set_scriptable"

NAMES: Mapping[str, Mapping[str, str]] = {
    "": {
        "featnet.compat.creation": _CREATION,
        "featnet.compat.config": _CONFIG,
        "featnet.compat.modules": "__version__=VERSION",
    },
    "version": {"featnet.compat.modules": "__version__=VERSION"},
    "models": {
        "featnet.compat.creation": f"{_CREATION} split_model_name_tag get_arch_name "
        "is_model_in_modules get_arch_pretrained_cfgs register_model generate_default_cfgs "
        "filter_pretrained_cfg resolve_pretrained_cfg parse_model_name safe_model_name "
        "build_model_with_cfg",
        "featnet.compat.weights": "clean_state_dict load_state_dict load_checkpoint "
        "remap_state_dict resume_checkpoint load_pretrained adapt_input_conv "
        "load_model_config_from_hf load_state_dict_from_hf "
        "load_model_config_from_path load_state_dict_from_path save_for_hf push_to_hf_hub",
        "featnet.compat.walking": "model_parameters named_apply named_modules "
        "named_modules_with_params group_with_matcher group_modules group_parameters checkpoint "
        "checkpoint_seq reparameterize_model feature_take_indices MATCH_PREV_GROUP",
        "featnet.weights": "PretrainedCfg=Weights DefaultCfg=Weights",
        "featnet.features": "FeatureInfo",
        "featnet.extraction.extractors": "FeatureListNet FeatureDictNet "
        "FeatureGetterNet=FeatureListNet",
        "featnet.extraction.hooknet": "FeatureHookNet",
        "featnet.extraction.hooks": "FeatureHooks",
        "featnet.extraction.fx.graphnet": "FeatureGraphNet=GraphExtractor",
        "featnet.extraction.fx.graph": "create_feature_extractor get_graph_node_names",
        "featnet.models.vit": "VisionTransformer",
        "featnet.models.resnet": "ResNet",
        "featnet.models.efficientnet": "EfficientNet MobileNetV3",
        "featnet.models.swin": "SwinTransformer",
        "featnet.models.convnext": "ConvNeXt",
        "featnet.models.regnet": "RegNet",
    },
    "layers": {
        "featnet.compat.config": f"{_CONFIG} is_no_jit set_no_jit set_layer_config use_fused_attn",
        "featnet.compat.layers": "to_ntuple to_1tuple to_2tuple to_3tuple to_4tuple "
        "make_divisible DropPath drop_path calculate_drop_path_rates Mlp LayerNorm LayerScale "
        "PatchEmbed SelectAdaptivePool2d get_act_layer create_act_layer get_norm_layer "
        "create_norm_layer create_conv2d create_pool2d resample_abs_pos_embed "
        "resample_patch_embed trunc_normal_tf_ lecun_normal_ LayerType",
        "featnet.compat.training": "freeze_batch_norm_2d unfreeze_batch_norm_2d",
        "featnet.compat.attention_pool": "AttentionPool2d",
        "featnet.compat.blocks": "Attention",
        "featnet.layers": "DropBlock2d BlurPool2d SqueezeExcite SEModule=SqueezeExcite "
        "EffectiveSqueezeExcite EffectiveSEModule=EffectiveSqueezeExcite "
        "EcaModule=EfficientChannelAttention EfficientChannelAttn=EfficientChannelAttention "
        "GlobalContext ConvNormAct ConvBnAct=ConvNormAct GroupNorm LayerNorm2d RmsNorm2d "
        "SimpleNorm2d QuickGELU=QuickGelu StdConv2d "
        "StdConv2dSame ScaledStdConv2d ScaledStdConv2dSame PatchDropout GluMlp "
        "get_attn=get_attention",
        "featnet.layers.frozen_norm": "FrozenBatchNormAct2d=FrozenBatchNorm2d",
        "featnet.layers.mobile_conv": "Conv2dSame MixedConv2d CondConv2d",
        "featnet.extraction.fx.graph": "create_feature_extractor get_graph_node_names",
        "torch.nn": "Swish=SiLU Mish Sigmoid Tanh HardSwish=Hardswish HardSigmoid=Hardsigmoid "
        "PReLU GELU RmsNorm=RMSNorm Linear Identity",
        "torch.nn.init": "trunc_normal_",
        "torch": "_assert",
    },
    "data": {
        "featnet.compat.images": "resolve_data_config resolve_model_data_config create_transform "
        "infer_imagenet_subset IMAGENET_DEFAULT_MEAN IMAGENET_DEFAULT_STD "
        "IMAGENET_INCEPTION_MEAN IMAGENET_INCEPTION_STD IMAGENET_DPN_MEAN IMAGENET_DPN_STD "
        "OPENAI_CLIP_MEAN OPENAI_CLIP_STD DEFAULT_CROP_PCT DEFAULT_CROP_MODE"
    },
    "models.vision_transformer": {
        "featnet.compat.blocks": "Attention Block",
        "featnet.compat.layers": "Mlp PatchEmbed LayerScale DropPath resample_abs_pos_embed",
    },
    "models.efficientnet": {"featnet.compat.layers": "make_divisible"},
    "utils": {
        "featnet.compat.training": "freeze unfreeze freeze_batch_norm_2d unfreeze_batch_norm_2d "
        "unwrap_model get_state_dict ModelEmaV2 ModelEmaV3 AverageMeter accuracy random_seed "
        "natural_key",
        "featnet.compat.walking": "reparameterize_model",
    },
}

# Modules with the names of another
SAME: Mapping[str, str] = {
    "models.layers": "layers",
    "data.config": "data",
    "data.distributed_sampler": "data",
    "data.constants": "data",
    "data.transforms_factory": "data",
    "data.imagenet_info": "data",
    "utils.model": "utils",
    "utils.model_ema": "utils",
    "utils.metrics": "utils",
    "utils.random": "utils",
    **dict.fromkeys(
        (
            f"models.{name}"
            for name in (
                *("_builder", "_factory", "_features", "_features_fx", "_helpers", "_hub"),
                *("_manipulate", "_pretrained", "_registry", "builder", "factory", "features"),
                *("fx_features", "helpers", "hub", "registry"),
            )
        ),
        "models",
    ),
}

# The parts of timm.layers, each of which has the names of the whole here
_LAYERS = (
    "activations adaptive_avgmax_pool attention attention_pool2d blur_pool classifier config "
    "conv2d_same conv_bn_act create_act create_attn create_conv2d create_norm drop eca format "
    "global_context helpers layer_scale linear mlp norm norm_act padding patch_dropout patch_embed "
    "pool2d_same pos_embed squeeze_excite std_conv trace_utils typing weight_init"
)
LAYERS = frozenset(_LAYERS.split())

# timm's modules of families to featnet's files, where the names differ
_FILES = {
    "vision_transformer": "vit",
    "vision_transformer_hybrid": "vit_hybrid",
    "vision_transformer_relpos": "vit_relpos",
    "vision_transformer_sam": "vit_sam",
    "swin_transformer": "swin",
    "swin_transformer_v2": "swin_v2",
    "swin_transformer_v2_cr": "swin_v2_cr",
    "byoanet": "byobnet",
    "mobilenetv3": "efficientnet",
    "xception_aligned": "xception",
    "deit": "vit",
}
_SAME_FILES = (
    "beit byobnet convnext cspnet cspnext densenet dla dpn efficientnet eva fasternet ghostnet "
    "hgnet hiera hrnet inception_resnet_v2 inception_v3 inception_v4 lcnetv2 nasnet nest nfnet "
    "pnasnet pvt_v2 rdnet regnet repghost res2net resnest resnet resnetv2 rexnet selecsls senet "
    "sknet starnet tresnet vgg vovnet xception"
)
FAMILIES: Mapping[str, str] = {**{name: name for name in _SAME_FILES.split()}, **_FILES}

# Of a family's module: the networks, which people ask about with isinstance
CLASSES: Mapping[str, str] = {
    "beit": "Beit",
    "byoanet": "ByobNet",
    "byobnet": "ByobNet",
    "convnext": "ConvNeXt",
    "cspnet": "CspNet",
    "deit": "VisionTransformerDistilled=DistilledVisionTransformer",
    "densenet": "DenseNet",
    "dla": "DLA",
    "dpn": "DPN",
    "efficientnet": "EfficientNet",
    "eva": "Eva",
    "fasternet": "FasterNet",
    "ghostnet": "GhostNet",
    "hgnet": "HighPerfGpuNet=HgNet",
    "hiera": "Hiera",
    "hrnet": "HighResolutionNet=HRNet",
    "inception_resnet_v2": "InceptionResnetV2",
    "inception_v3": "InceptionV3",
    "inception_v4": "InceptionV4",
    "mobilenetv3": "MobileNetV3",
    "nasnet": "NASNetALarge=NASNet",
    "nest": "Nest",
    "nfnet": "NormFreeNet",
    "pnasnet": "PNASNet5Large=PNASNet",
    "pvt_v2": "PyramidVisionTransformerV2",
    "rdnet": "RDNet=RdNet",
    "regnet": "RegNet",
    "resnet": "ResNet BasicBlock Bottleneck",
    "resnetv2": "ResNetV2",
    "rexnet": "RexNet",
    "selecsls": "SelecSls",
    "senet": "SENet",
    "starnet": "StarNet",
    "swin_transformer": "SwinTransformer",
    "swin_transformer_v2": "SwinTransformerV2",
    "swin_transformer_v2_cr": "SwinTransformerV2Cr",
    "tresnet": "TResNet",
    "vgg": "VGG",
    "vision_transformer": "VisionTransformer",
    "vision_transformer_relpos": "VisionTransformerRelPos",
    "vision_transformer_sam": "VisionTransformerSAM",
    "vovnet": "VovNet",
    "xception": "Xception",
    "xception_aligned": "XceptionAligned",
}

# Names that libraries import and seldom call: what to use in their place
_OWN = "build the network by its name with create_model; a variant of one's own is a featnet.Family"
REFUSED: Mapping[str, str] = {
    "decode_arch_def": _OWN,
    "round_channels": _OWN,
    "SelectiveKernelBasic": _OWN,
    "SelectiveKernelBottleneck": _OWN,
    "RotaryEmbeddingCat": "featnet.layers.RotaryEmbedding has other arguments.",
    "apply_rot_embed_cat": "it goes with RotaryEmbeddingCat.",
    "ImageNetInfo": "it holds no names of classes; torchvision's "
    "ResNet50_Weights.DEFAULT.meta['categories'] are those of ImageNet-1k.",
    "RotAttentionPool2d": "AttentionPool2d, whose positions are learned, is there.",
    "OrderedDistributedSampler": "torch.utils.data.DistributedSampler(shuffle=False).",
}
