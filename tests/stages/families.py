"""Every image-text-to-text family of transformers, and what each needs to become a tiny model.

python -m tests.stages.families_table     # the tables of README.md
"""

from __future__ import annotations

import torch
from transformers import ResNetConfig, SiglipVisionConfig

from tests.stages.families_build import GRID, IMAGE_TOKEN, LAYERS, VISION, WORDS, Family, noise, pixels


def text(**changes: object) -> dict:
    """Changes of the text decoder's configuration."""
    return {"text_config": changes}


def sizes(side: int) -> torch.Tensor:
    """One square picture."""
    return torch.tensor([[side, side]])


PLAIN = Family()
DEEP = Family({"vision_config": {"deepstack_visual_indexes": [0, 1]}})
AXES = Family(text(rope_parameters={"mrope_section": [8, 4, 4]}))
CAPPED = Family(text(final_logit_softcapping=30.0))
TILES = Family({"image_grid_pinpoints": [[28, 28], [28, 56]]}, pixels(1, 2, 3, 28, 28, image_sizes=sizes(28)))
FRAMES = Family({"scale_factor": 2, "vision_config": {"image_size": 56}}, pixels(1, 1, 3, 56, 56))
STRIP = Family(picture=pixels(1, 3, 14, 224, target_sizes=torch.tensor([[4, 4]])))
PATCHES = pixels(16, 3, 14, 14, image_grid_thw=GRID)
RESNET = ResNetConfig(embedding_size=16, hidden_sizes=[48], depths=[1])
RESNET.hidden_size, RESNET.rms_norm_eps, RESNET.vocab_size, RESNET.vocab_offset = 48, 1e-6, 16, WORDS
SIGLIP = SiglipVisionConfig(image_size=28, patch_size=14, vision_use_head=False, **VISION)
SIGLIP.model_args = {"embed_dim": VISION["hidden_size"]}

SUPPORTED: dict[str, Family] = {
    "aria": Family({"projector_patch_to_query_dict": {"4": 2}, "max_value_projector_patch_to_query_dict": 2}),
    "aya_vision": PLAIN,
    "cohere2_vision": PLAIN,
    "cohere_compass": Family(
        text(logit_scale=0.3, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}})
        | DEEP.changes
    ),
    "cosmos3_edge": PLAIN,
    "cosmos3_omni": DEEP,
    "deepseek_ocr2": Family(
        text(mlp_layer_types=["dense", "sparse", "sparse", "sparse"], num_experts_per_tok=2)
        | {"vision_config": {"sam_config": {"downsample_channels": [16, 48]}}}
    ),
    "deepseek_vl": PLAIN,
    "deepseek_vl_hybrid": Family(
        {
            "high_res_vision_config": {
                "image_size": 64,
                "patch_size": 16,
                "window_size": 2,
                "scale": 2,
                "output_channels": 16,
                "global_attn_indexes": [1],
            }
        },
        pixels(1, 3, 28, 28, high_res_pixel_values=noise(1, 3, 64, 64)),
    ),
    "dots3_note": Family(
        text(head_dim=32, layer_types=["indexed_attention"] * LAYERS)
        | {
            "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 48},
            "audio_config": {"adapter_input_size": 48},
        }
    ),
    "emu3": Family(
        {
            "vocabulary_map": {"<image>": IMAGE_TOKEN}
            | {f"<|visual token {i:06}|>": 100 + i for i in range(8)}
            | {"<|extra_200|>": 99},
            "vq_config": {"base_channels": 32, "codebook_size": 8, "hidden_size": 128, "num_attention_heads": 1},
        },
        pixels(1, 3, 32, 32, image_sizes=sizes(32)),
    ),
    "ernie4_5_vl_moe": Family(text(rope_parameters={"mrope_section": [6, 6, 4]})),
    "exaone4_5": PLAIN,
    "fast_vlm": Family(tower=RESNET),
    "fuyu": Family(picture=pixels(1, 4, 588)),
    "gemma3": Family({"mm_tokens_per_image": 4}),
    "glm46v": AXES,
    "glm4v": AXES,
    "glm4v_moe": Family(text(rope_parameters={"mrope_section": [4, 2, 2]})),
    "glm_ocr": AXES,
    "got_ocr2": PLAIN,
    "granite4_vision": Family(
        text(logits_scaling=6.0)
        | {
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[1, 0]],
            "spatial_target_layers": [1, 2, 3, 3],
            "image_grid_pinpoints": [[56, 56]],
            "vision_config": {"image_size": 56, "hidden_size": 64},
            "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64},
        },
        pixels(1, 2, 3, 56, 56, image_sizes=sizes(56)),
        tokens=10,
    ),
    "granite_docling": Family(
        {"vision_config": {"image_size": 112, "deepstack_visual_indexes": [0, 1, 1]}},
        pixels(1, 1, 3, 112, 112, pixel_attention_mask=torch.ones(1, 1).bool()),
    ),
    "hunyuan_vl": Family(text(head_dim=32, rope_parameters={"mrope_section": [4, 4, 4, 4]})),
    "hyperclovax_vision_v2": Family(text(logits_scaling=0.125)),
    "idefics2": FRAMES,
    "idefics3": FRAMES,
    "internvl": PLAIN,
    "janus": Family({"vq_config": {"base_channels": 32}}),
    "kimi_k25": Family({"projection_hidden_size": 48, **text(head_dim=16)}, PATCHES),
    "lfm2_vl": Family(
        text(layer_types=["conv", "full_attention"] * 2),
        pixels(1, 16, 588, spatial_shapes=sizes(4), pixel_attention_mask=torch.ones(1, 16).long()),
    ),
    "lfm3_vl": PLAIN,
    "lighton_ocr": PLAIN,
    "llama4": Family(
        text(no_rope_layers=[1, 1, 1, 0], moe_layers=[1, 3])
        | {
            "vision_config": {
                "projector_input_dim": 64,
                "projector_output_dim": 64,
                "vision_output_dim": 64,
                "intermediate_size": 192,
            }
        }
    ),
    "llava": Family(picture=pixels(1, 3, 28, 28)),
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES,
    "minicpm_ocr": STRIP,
    "minicpmv4_6": STRIP,
    "minicpmv4_7": STRIP,
    "minimax_m3_vl": PLAIN,
    "mistral3": Family({"vision_config": {"image_size": 56}}, pixels(1, 3, 56, 56, image_sizes=sizes(56))),
    "mllama": Family(
        text(cross_attention_layers=[1, 3])
        | {
            "vision_config": {
                "attention_heads": 4,
                "num_global_layers": 2,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 144,
            }
        },
        pixels(
            *(2, 1, 4, 3, 28, 28),
            aspect_ratio_ids=torch.ones(2, 1).long(),
            aspect_ratio_mask=torch.ones(2, 1, 4).long(),
            cross_attention_mask=torch.ones(2, 11, 1, 4).long(),
        ),
        tokens=1,
    ),
    "molmo2": Family(
        {
            "vision_config": {"image_size": [28, 28], "num_position_embeddings": 4},
            "adapter_config": {"vision_feature_layer": [-1, 0]},
        },
        pixels(1, 4, 588, image_token_pooling=torch.tensor([[0, 1], [2, 3]]), image_grids=torch.tensor([[1, 1, 1, 1]])),
    ),
    "nemotron_h_omni": Family(
        {"vision_hidden_size": 48, "vision_config": {"patch_dim": 588}},
        pixels(16, 588, image_grid_hw=torch.tensor([[4, 4]])),
    ),
    "ovis2": PLAIN,
    "paddleocr_vl": Family(AXES.changes, PATCHES),
    "paligemma": PLAIN,
    "perception_lm": Family({"vision_use_cls_token": False}, pixels(1, 1, 3, 28, 28), tower=SIGLIP),
    "qianfan_ocr": PLAIN,
    "qwen2_5_omni_thinker": Family({**AXES.changes, "vision_start_token_id": 5}),
    "qwen2_5_vl": AXES,
    "qwen2_vl": Family({**AXES.changes, "vision_config": {"hidden_size": 64}}),
    "qwen3_5": PLAIN,
    "qwen3_5_moe": PLAIN,
    "qwen3_omni_moe_thinker": Family({**AXES.changes, **DEEP.changes, "vision_start_token_id": 5}),
    "qwen3_vl": DEEP,
    "qwen3_vl_moe": DEEP,
    "smolvlm": FRAMES,
    "step3p7": Family(
        text(
            sliding_window=64,
            num_sliding_attention_heads=2,
            share_expert_dim=32,
            rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        )
    ),
    "unlimited_ocr": Family({"vision_config": {"sam_config": {"downsample_channels": [16, 48]}}}),
    "video_llama_3": Family(picture=pixels(16, 588, image_grid_thw=GRID, image_merge_sizes=torch.tensor([2]))),
    "video_llava": Family(picture=lambda: {"pixel_values_images": noise(1, 3, 28, 28)}, tokens=4),
    "vipllava": Family({"vision_feature_layers": [-2, -1]}),
}

REFUSED: dict[str, Family] = {
    "blip": PLAIN,
    "blip-2": PLAIN,
    "chameleon": Family(
        {
            "vocabulary_map": {"<image>": IMAGE_TOKEN} | {f"IMGIMG{chr(65 + i)}Z": 100 + i for i in range(8)},
            "vq_config": {"base_channels": 32, "num_embeddings": 8, "resolution": 32, "embed_dim": 16},
        },
    ),
    "diffusion_gemma": Family(text(num_experts=4, top_k_experts=2, moe_intermediate_size=32)),
    "florence2": PLAIN,
    "gemma3n": Family(
        text(
            intermediate_size=[64] * LAYERS,
            activation_sparsity_pattern=[0.0] * LAYERS,
            num_kv_shared_layers=0,
            vocab_size_per_layer_input=128,
            hidden_size_per_layer_input=16,
        ),
        tower=RESNET,
    ),
    "gemma4": CAPPED,
    "gemma4_unified": CAPPED,
    "git": PLAIN,
    "glm5_next": Family(text(qk_rope_head_dim=0)),
    "idefics": PLAIN,
    "inkling2": PLAIN,
    "inkling_mm_model": Family(
        text(swa_num_attention_heads=2, swa_num_key_value_heads=2, swa_head_dim=32, local_layer_ids=[0, 1])
        | {"vision_config": {"n_layers": 2}},
        pixels(4, 2, 14, 14, 3),
    ),
    "instructblip": PLAIN,
    "instructblipvideo": PLAIN,
    "kosmos-2": Family(text(attention_heads=4, layers=LAYERS)),
    "mistral_large4": Family(text(kv_source_layers=None, no_rope_layers=None, indexer_types=None)),
    "muse_glimmer": PLAIN,
    "muse_spark": Family({"audio_config": {"num_hidden_layers": 4}}),
    "pix2struct": PLAIN,
    "pp_formulanet": PLAIN,
    "qwen4_exp": Family(
        text(
            indexer_n_heads=2,
            indexer_kv_heads=1,
            indexer_head_dim=32,
            indexer_budget=64,
            indexer_compress_ratio=4,
            hc_lowrank=8,
            ple_embed_dim=16,
            ngram_vocab_size_base=100,
            split_ngram_parts=2,
        )
    ),
    "t5gemma2": PLAIN,
    "udop": PLAIN,
    "vision-encoder-decoder": PLAIN,
}

NOT_TRIED = {
    "evolla": "reads proteins, not pictures",
    "glmga": "the class of glm46v",
    "kosmos-2.5": "places pictures by a mask beside the tokens",
    "mistral4": "reads no pictures",
    "pi0": "writes movements of a robot, not words",
    "pp_chart2table": "the class of got_ocr2",
    "shieldgemma2": "the class of gemma3",
}
FAMILIES = SUPPORTED | REFUSED
