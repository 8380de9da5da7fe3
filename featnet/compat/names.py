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
_BUILDER = "EfficientNet decode_arch_def round_channels"
_TRACE = (
    "get_notrace_modules get_notrace_functions register_notrace_module register_notrace_function"
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
        "featnet.compat.config": _TRACE,
        "featnet.weights": "PretrainedCfg=Weights DefaultCfg=Weights",
        "featnet.features": "FeatureInfo",
        "featnet.extraction.extractors": "FeatureListNet FeatureDictNet "
        "FeatureGetterNet=FeatureListNet",
        "featnet.extraction.hooknet": "FeatureHookNet",
        "featnet.extraction.hooks": "FeatureHooks",
        "featnet.extraction.fx.graphnet": "FeatureGraphNet=GraphExtractor",
        "featnet.extraction.fx.graph": "create_feature_extractor get_graph_node_names",
        "featnet.compat.networks.vit": "VisionTransformer",
        "featnet.compat.networks.resnet": "ResNet",
        "featnet.compat.networks.efficientnet": "EfficientNet",
        "featnet.models.efficientnet": "MobileNetV3",
        "featnet.models.swin": "SwinTransformer",
        "featnet.models.convnext": "ConvNeXt",
        "featnet.models.regnet": "RegNet",
    },
    "layers": {
        "featnet.compat.config": f"{_CONFIG} {_TRACE} is_no_jit set_no_jit "
        "set_layer_config use_fused_attn",
        "featnet.compat.layers": "to_ntuple to_1tuple to_2tuple to_3tuple to_4tuple "
        "make_divisible BatchNormAct2d DropPath drop_path calculate_drop_path_rates Mlp "
        "LayerNorm LayerScale PatchEmbed SelectAdaptivePool2d get_act_layer create_act_layer "
        "get_norm_layer create_norm_layer create_conv2d create_pool2d resample_abs_pos_embed "
        "resample_patch_embed trunc_normal_tf_ lecun_normal_ LayerType",
        "featnet.compat.training": "freeze_batch_norm_2d unfreeze_batch_norm_2d",
        "featnet.compat.layout": "Format get_spatial_dim get_channel_dim nchw_to nhwc_to",
        "featnet.compat.attention_pool": "AttentionPool2d RotAttentionPool2d",
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
    "models.resnet": {"featnet.compat.networks.resnet": "ResNet"},
    "models.vision_transformer": {
        "featnet.compat.networks.vit": "VisionTransformer",
        "featnet.compat.creation": "_cfg=describe",
        "featnet.compat.blocks": "Attention Block",
        "featnet.compat.layers": "Mlp PatchEmbed LayerScale DropPath resample_abs_pos_embed",
    },
    "models.efficientnet": {
        "featnet.compat.layers": "make_divisible",
        "featnet.compat.networks.efficientnet": _BUILDER,
    },
    "models._efficientnet_builder": {"featnet.compat.networks.efficientnet": _BUILDER},
    "utils": {
        "featnet.compat.training": "freeze unfreeze freeze_batch_norm_2d unfreeze_batch_norm_2d "
        "unwrap_model get_state_dict ModelEmaV2 ModelEmaV3 AverageMeter accuracy random_seed "
        "natural_key",
        "featnet.compat.walking": "reparameterize_model",
    },
    "optim": {
        "featnet.compat.optimizers": "create_optimizer create_optimizer_v2 optimizer_kwargs "
        "list_optimizers get_optimizer_class param_groups_weight_decay param_groups_layer_decay "
        "add_weight_decay=param_groups_weight_decay"
    },
    "loss": {
        "featnet.compat.optimizers": "LabelSmoothingCrossEntropy",
        "torch.nn": "SoftTargetCrossEntropy=CrossEntropyLoss",
    },
    "scheduler": {"featnet.compat.schedules": "CosineLRScheduler"},
}

# Modules with the names of another
SAME: Mapping[str, str] = {
    "models.layers": "layers",
    "data.config": "data",
    "data.distributed_sampler": "data",
    "data.constants": "data",
    "data.transforms_factory": "data",
    "data.imagenet_info": "data",
    "data.mixup": "data",
    "data.loader": "data",
    "data.dataset": "data",
    "data.dataset_factory": "data",
    "data.auto_augment": "data",
    "loss.cross_entropy": "loss",
    "optim.optim_factory": "optim",
    "optim._optim_factory": "optim",
    "scheduler.cosine_lr": "scheduler",
    "scheduler.scheduler_factory": "scheduler",
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

# Of a family's module: the networks, which people ask about with isinstance
CLASSES: Mapping[str, str] = {
    "beit": "Beit",
    "byoanet": "ByobNet",
    "byobnet": "ByobNet",
    "coat": "CoaT=Coat",
    "convmixer": "ConvMixer",
    "convnext": "ConvNeXt",
    "cpubone": "CPUBone",
    "cspnet": "CspNet",
    "cspnext": "CspNext",
    "davit": "DaVit",
    "deit": "VisionTransformerDistilled=DistilledVisionTransformer",
    "densenet": "DenseNet",
    "dla": "DLA",
    "dpn": "DPN",
    "edgenext": "EdgeNeXt",
    "efficientvit_mit": "EfficientVit EfficientVitLarge",
    "eva": "Eva",
    "fasternet": "FasterNet",
    "fastvit": "FastVit",
    "focalnet": "FocalNet",
    "gcvit": "GlobalContextVit",
    "ghostnet": "GhostNet",
    "hgnet": "HighPerfGpuNet=HgNet",
    "hiera": "Hiera",
    "hieradet_sam2": "HieraDet",
    "hrnet": "HighResolutionNet=HRNet",
    "inception_next": "MetaNeXt=InceptionNeXt",
    "inception_resnet_v2": "InceptionResnetV2",
    "inception_v3": "InceptionV3",
    "inception_v4": "InceptionV4",
    "lcnetv2": "LCNetV2=LcNetV2",
    "lowformer": "LowFormer",
    "mambaout": "MambaOut",
    "maxxvit": "MaxxVit",
    "metaformer": "MetaFormer",
    "mobilenetv3": "MobileNetV3",
    "mobilenetv5": "MobileNetV5",
    "mvitv2": "MultiScaleVit",
    "nasnet": "NASNetALarge=NASNet",
    "nest": "Nest",
    "nextvit": "NextViT",
    "nfnet": "NormFreeNet",
    "pit": "PoolingVisionTransformer",
    "pnasnet": "PNASNet5Large=PNASNet",
    "pvt_v2": "PyramidVisionTransformerV2",
    "rdnet": "RDNet=RdNet",
    "regnet": "RegNet",
    "repghost": "RepGhostNet=GhostNet",
    "resnet": "BasicBlock Bottleneck",
    "resnetv2": "ResNetV2",
    "rexnet": "RexNet",
    "selecsls": "SelecSls",
    "senet": "SENet",
    "sknet": "SelectiveKernelBasic=SelectiveBasic SelectiveKernelBottleneck=SelectiveBottleneck",
    "starnet": "StarNet",
    "swin_transformer": "SwinTransformer",
    "swin_transformer_v2": "SwinTransformerV2",
    "swin_transformer_v2_cr": "SwinTransformerV2Cr",
    "tresnet": "TResNet",
    "twins": "Twins",
    "vgg": "VGG",
    "vision_transformer_relpos": "VisionTransformerRelPos",
    "vision_transformer_sam": "VisionTransformerSAM",
    "vovnet": "VovNet",
    "xception": "Xception",
    "xception_aligned": "XceptionAligned",
}

# Names that libraries import and seldom call: what to use in their place
_WARMUP = (
    "CosineLRScheduler is there, and torch.optim.lr_scheduler.SequentialLR of LinearLR and "
    "CosineAnnealingLR warms up and decays; other schedules are in torch.optim.lr_scheduler."
)
_MIXUP = "torchvision.transforms.v2.MixUp and CutMix, over a batch, take its place."
_LOADER = (
    "torchvision.datasets.ImageFolder with create_transform, in a torch.utils.data.DataLoader, "
    "takes its place."
)
_AUGMENT = "torchvision.transforms.v2 has RandAugment, AutoAugment and AugMix."
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("create_dataset", "create_loader", "ImageDataset"), _LOADER),
    **dict.fromkeys(("Mixup", "FastCollateMixup"), _MIXUP),
    **dict.fromkeys(("rand_augment_transform", "auto_augment_transform"), _AUGMENT),
    **dict.fromkeys(
        (
            *("create_scheduler", "create_scheduler_v2", "scheduler_kwargs"),
            *("MultiStepLRScheduler", "PlateauLRScheduler", "PolyLRScheduler", "StepLRScheduler"),
            "TanhLRScheduler",
        ),
        _WARMUP,
    ),
    "BinaryCrossEntropy": "torch.nn.BCEWithLogitsLoss takes its place.",
    "RotaryEmbeddingCat": "featnet.layers.RotaryEmbedding has other arguments.",
    "apply_rot_embed_cat": "it goes with RotaryEmbeddingCat.",
    "ImageNetInfo": "it holds no names of classes; torchvision's "
    "ResNet50_Weights.DEFAULT.meta['categories'] are those of ImageNet-1k.",
    "OrderedDistributedSampler": "torch.utils.data.DistributedSampler(shuffle=False).",
}
