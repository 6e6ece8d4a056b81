"""Kinds of layers that real models have and rules mistook: each with siblings, as `trees_as_text.py` says.

``?`` is unknown (AdamW and a warning), ``~`` is taken on weak evidence and shown so.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from trees_as_text import rows, table, tree_of

import muon_optax as mo

KINDS = {
    "tables without embed in their names: a recommender": """
        item/weight 1000x64 ~-
        user/weight 500x64 ~-
        mlp/0/weight 128x128 oi
        mlp/0/bias 128 -
        mlp/2/weight 1x128 -
        mlp/2/bias 1 -""",
    "tables without embed in their names: T5's shared": """
        shared/weight 32128x512 ~-
        encoder/block/0/layer/0/SelfAttention/q/weight 384x512 oi
        encoder/block/0/layer/0/SelfAttention/o/weight 512x384 oi
        encoder/block/0/layer/0/layer_norm/weight 512 -
        lm_head/weight 32128x512 -""",
    "tables without embed in their names: queries of a detector": """
        query_embed/weight 100x256 ~-
        decoder/layers/0/linear1/weight 2048x256 oi
        decoder/layers/0/linear1/bias 2048 -
        decoder/layers/0/linear2/weight 256x2048 oi
        decoder/layers/0/linear2/bias 256 -
        decoder/norm/weight 256 -
        decoder/norm/bias 256 -""",
    "heads under any name: an actor in Linen": """
        Dense_0/kernel 17x64 io
        Dense_0/bias 64 -
        Dense_1/kernel 64x64 io
        Dense_1/bias 64 -
        Dense_2/kernel 64x6 ~-
        Dense_2/bias 6 -""",
    "heads under any name: means and action values": """
        torso/Dense_0/kernel 17x128 io
        torso/Dense_0/bias 128 -
        actor_mean/kernel 128x6 ~-
        actor_mean/bias 6 -
        q_values/kernel 128x11 ~-
        q_values/bias 11 -
        log_std 6 -""",
    "heads under any name: a convolution before the last layer": """
        Conv_0/kernel 3x3x3x32 iiio
        Conv_0/bias 32 -
        Dense_0/kernel 2048x100 ~-
        Dense_0/bias 100 -""",
    "heads under any name: a part of another size stays, marked": """
        Dense_0/kernel 12x64 io
        Dense_0/bias 64 -
        Dense_1/kernel 64x6 ~io
        Dense_1/bias 6 -""",
    "no heads: projections of every block": """
        blocks/0/input_head/weight 2304x768x1x1 ~oiii
        blocks/0/output_head/weight 768x768x1x1 ~oiii
        blocks/0/norm/weight 768 -
        blocks/1/input_head/weight 2304x768x1x1 ~oiii
        blocks/1/output_head/weight 768x768x1x1 ~oiii
        blocks/1/norm/weight 768 -
        head/weight 10x768 -""",
    "no heads: a convolution before the classifier": """
        blocks/0/conv_pw/weight 320x192x1x1 oiii
        blocks/0/bn/weight 320 -
        conv_head/weight 1280x320x1x1 ~oiii
        bn2/weight 1280 -
        classifier/weight 1000x1280 -
        classifier/bias 1000 -""",
    "no heads: a layer before the logits, and one into another model": """
        norm/scale 768 -
        norm_of_text/scale 512 -
        up/kernel 768x3072 io
        down/kernel 3072x768 io
        pre_logits/kernel 768x768 ~io
        image_head/kernel 768x512 ~io
        head/kernel 768x1000 -""",
    "heads first, beside a norm": """
        layers/0/ln/scale 64 -
        layers/0/attn/wq 4x64x16 oio
        layers/0/attn/wk 4x64x16 oio
        layers/0/attn/wv 4x64x16 oio
        layers/0/attn/wo 4x16x64 iio""",
    "heads first, fewer keys": """
        layers/0/ln/scale 64 -
        layers/0/attn/q_proj/w 8x64x16 oio
        layers/0/attn/k_proj/w 2x64x16 oio
        layers/0/attn/v_proj/w 2x64x16 oio
        layers/0/attn/o_proj/w 8x16x64 iio""",
    "heads first, the norm far away": """
        final_norm/scale 64 -
        layers/0/attn/wq 4x64x16 ~oio
        layers/0/attn/wo 4x16x64 ~iio""",
    "keras-hub's EinsumDense": """
        attention/query/kernel 8x2048x256 oio
        attention/key/kernel 1x2048x256 oio
        attention/value/kernel 1x2048x256 oio
        attention/attention_output/kernel 8x256x2048 iio
        pre_attention_norm/scale 2048 -""",
    "EinsumDense in scanned layers": """
        layers/attention/query/kernel 3x8x64x16 boio
        layers/attention/key/kernel 3x2x64x16 boio
        layers/attention/attention_output/kernel 3x8x16x64 biio
        layers/pre_attention_norm/scale 3x64 -""",
    "EinsumDense beside a feed-forward layer": """
        block/attention/query/kernel 4x384x64 oio
        block/attention/value/kernel 1x384x64 oio
        block/attention/attention_output/kernel 4x64x384 iio
        block/ffw_gating/kernel 384x1536 ~io
        block/ffw_linear/kernel 1536x384 io
        block/pre_attention_norm/scale 384 -""",
    "outputs of attention stored as the query is": """
        norm/gamma 256 -
        attn/query/kernel 256x4x64 ioo
        attn/key/kernel 256x4x64 ioo
        attn/attention_output/kernel 256x4x64 oii""",
    "PyTorch's pairs of X_weight and X_bias": """
        attn/in_proj_weight 2304x768 oi split 768+768+768
        attn/in_proj_bias 2304 -
        attn/out_proj/weight 768x768 oi
        attn/out_proj/bias 768 -""",
    "PyTorch's pairs: a convolution": """
        proj1_weight 768x192x4x4x4 oiiii
        proj1_bias 768 -
        proj2_weight 96x768x3x3 ~oiii
        proj2_bias 96 -""",
    "PyTorch's pairs: a layer written out": """
        up_weight 256x64 oi
        up_bias 256 -
        down_weight 64x256 oi
        down_bias 64 -""",
    "PyTorch's cells": """
        lstm/weight_ih_l0 256x48 oi
        lstm/weight_hh_l0 256x64 oi
        lstm/bias_ih_l0 256 -
        lstm/bias_hh_l0 256 -
        proj/weight 48x64 ~oi
        proj/bias 48 -""",
    "PyTorch's experts with biases": """
        mlp/router/weight 32x288 oi
        mlp/mlp1_weight 32x576x288 boi
        mlp/mlp1_bias 32x576 -
        mlp/mlp2_weight 32x288x280 boi
        mlp/mlp2_bias 32x288 -
        norm/scale 288 -""",
    "PyTorch's experts without biases or a router": """
        experts/gate_proj/weight 8x128x64 boi
        experts/up_proj/weight 8x128x64 boi
        experts/down_proj/weight 8x64x128 boi
        norm/weight 64 -""",
    "one array of experts beside a norm of its inputs": """
        moe/experts/up/weight 4x12x6 boi
        moe/norm/weight 6 -""",
    "PyTorch's transposed convolutions": """
        ups/0/weight 512x256x16 ioi
        ups/0/bias 256 -
        ups/1/weight 256x128x16 ioi
        ups/1/bias 128 -
        post/weight 64x128x7 oii
        post/bias 64 -""",
    "raw convolutions with their outputs first": """
        stack/0 64x32x3x3 oiii
        stack/1 128x64x3x3x3 ~oiiii
        stack/2 64x32x5x5 oiii""",
    "windows in front stay in front": """
        a/kernel 3x3x16x16 ~iiio
        b/kernel 5x5x8x8 ~iiio""",
    "weight normalization": """
        conv/weight_v 64x32x7 oii
        conv/weight_g 64x1x1 -
        conv/bias 64 -
        post/parametrizations/weight/original0 8x1 -
        post/parametrizations/weight/original1 8x64 ~oi
        post/bias 8 -""",
    "a pair of scale and matrix": """
        Dense_0/kernel/0 256 -
        Dense_0/kernel/1 64x256 ~io
        Dense_0/bias 256 -
        Dense_1/kernel/0 64 -
        Dense_1/kernel/1 256x64 io
        Dense_1/bias 64 -
        Dense_2/kernel/0 64 -
        Dense_2/kernel/1 64x64 ~io""",
    "weights in the wrapper of an adapter": """
        model/embed_tokens/base_layer/weight 32000x64 -
        layers/0/q_proj/base_layer/weight 64x64 ~oi
        layers/0/q_proj/lora_A/default/weight 4x64 ~oi
        layers/0/q_proj/lora_B/default/weight 64x4 ~oi
        norm/weight 64 -""",
    "blocks on a diagonal: their bias is flat": """
        gru/kernel 8x256x768 bio
        gru/bias 6144 -
        hidden/kernel 8x1024x256 bio
        hidden/bias 2048 -
        norm/scale 2048 -""",
    "blocks on a diagonal: a bias for each": """
        gate/w 10x256x256 bio
        gate/b 10x256 -
        linear_x/w 2560x2560 ~io
        linear_x/b 2560 -
        norm/scale 2560 -""",
    "pairs of convolutions in lists, with biases of four axes": """
        0/0 7x7x3x64 iiio
        0/1 1x1x1x64 -
        3/0/0/0 3x3x64x64 iiio
        3/0/0/1 1x1x1x64 -
        5/0 64x10 ~-
        5/1 10 -""",
    "pairs in lists, outputs first": """
        0/0 512x784 oi
        0/1 512 -
        1/0 512x512 ~oi
        1/1 512 -""",
    "blocks on a diagonal without a bias": """
        norm/weight 128 -
        proj_up/weight 512x128 ~oi
        q_proj/weight 64x4x4 ~boi
        k_proj/weight 64x4x4 ~boi
        proj_down/weight 128x256 ~oi""",
    "tables side by side, some as high as a layer": """
        tables/a/weight 1000x16 ~-
        tables/b/weight 24x16 ~-
        tables/c/weight 64x16 ~-
        tables/d/weight 3x16 ~-
        top/0/weight 64x80 oi
        top/0/bias 64 -
        top/2/weight 25x64 ~-
        top/2/bias 25 -""",
    "heads with a bias for each": """
        norm/scale 64 -
        query/kernel 4x64x16 oio
        query/bias 4x16 -""",
    "low-rank pairs of an einsum": """
        norm/scale 18x2048 -
        q_einsum/w 18x8x2048x256 boio
        q_einsum/lora_a 18x8x2048x16 bbio
        q_einsum/lora_b 18x8x16x256 bbio
        attn_vec_einsum/w 18x8x256x2048 biio
        attn_vec_einsum/lora_a 18x8x256x16 bbio
        attn_vec_einsum/lora_b 18x8x16x2048 bbio""",
    "low-rank pairs of stacked layers": """
        proj/lora_a 6x512x8 bio
        proj/lora_b 6x8x512 bio""",
    "low-rank pairs of gates": """
        gating_einsum 2x64x256 ~bio
        linear 256x64 ~io
        gating_einsum_lora_a 2x64x4 bio
        gating_einsum_lora_b 2x4x256 bio""",
    "gates in a module beside": """
        ffw_up/w 2x2560x7680 bio
        ffw_down/kernel 7680x2560 io
        norm/scale 2560 -""",
    "gates in a module beside, stacked": """
        layers/ffw_up/w 6x2x64x256 bbio
        layers/ffw_down/kernel 6x256x64 bio
        layers/norm/scale 6x64 -""",
    "gates in a module beside, one scope out": """
        mlp/gates/kernel 2x64x256 bio
        mlp/out_layer/down/kernel 256x64 io
        norm/scale 64 -""",
    "depthwise with a unit axis in PyTorch": """
        convs_sep/0/weight 192x1x3 -
        convs_sep/0/bias 192 -
        convs_1x1/0/weight 192x192x1 oii
        convs_1x1/0/bias 192 -""",
    "depthwise by its window alone": """
        block/conv_dw/weight 96x1x7x7 -
        block/conv_dw/bias 96 -
        block/mlp/fc1/weight 384x96 oi
        block/mlp/fc1/bias 384 -
        block/mlp/fc2/weight 96x384 ~oi
        block/mlp/fc2/bias 96 -""",
    "a first convolution of one channel in PyTorch": """
        convs/0/weight 16x1x15 oii
        convs/0/bias 16 -
        convs/1/weight 64x16x41 oii
        convs/1/bias 64 -
        convs/2/weight 64x64x5 ~oii
        convs/2/bias 64 -""",
    "depthwise of two axes, and by its name": """
        mixer/conv1d_kernel 512x4 -
        mixer/in_proj/kernel 256x1024 ~io
        mixer/out_proj/kernel 512x256 io
        norm/scale 256 -
        a/dw/kernel 3x1x32 -
        b/conv_dw/kernel 3x3x1x64 -
        attn/k_proj/w 256x1x64 ioo""",
    "a norm's name on a linear layer": """
        norm_mlp/w 3x8 io
        norm_mlp/b 8 -
        final_norm/w 8 -
        ln_out/weight 16x8 ~oi
        ln_out/bias 16 -
        up/weight 8x16 oi""",
    "a norm's name on a layer with a kernel": """
        rms_proj/kernel 16x8 io
        rms_proj/bias 8 -
        rms_proj_norm/scale 8 -
        ln_mlp/w 8x16 io
        ln_mlp/b 16 -""",
    "a norm's name on a norm": """
        ln_1/w 3x8 ~-
        ln_1/b 3x8 ~-
        norm/weight 8 -
        norm/bias 8 -""",
    "only biases in sight, of stacked layers": """
        layers/up/b 4x256 -
        layers/down/b 4x64 -""",
    "only biases in sight, in capitals": """
        B 3x16 -""",
    "only biases in sight": """
        a/b 3x16 -
        c/b 3x8 -""",
    "a b beside its a": """
        a 6x2 ~io
        b 2x6 ~io""",
    "complex arrays": """
        dense/bias 8 -""",
    "half of an attention": """
        query/kernel 64x4x32 ~ioo
        key/kernel 64x2x32 ~ioo""",
    "half of an attention: keys and values of fewer heads": """
        attn/q_proj/kernel 128x8x32 ~ioo
        attn/k_proj/kernel 128x2x32 ~ioo
        attn/v_proj/kernel 128x2x32 ~ioo""",
    "half of an attention beside a norm": """
        norm/scale 64 -
        query/kernel 64x4x32 ioo
        key/kernel 64x2x32 ~ioo""",
    "half of an attention, which may be a stack": """
        query/kernel 48x8x8 ?
        key/kernel 48x4x8 ?""",
    "one for each feature, by heads": """
        ln/scale 256 -
        time_mix/r_k 4x64 ~-
        time_mix/bonus 8x32 ~-
        time_mix/receptance/kernel 256x256 io""",
    "biases of attention by distance": """
        norm/scale 64 -
        attn/relative_bias/wrb 4x32 -
        attn/relative_attention_bias/weight 32x4 -""",
    "a filter for each channel under no name: a list of layers": """
        blocks_0/net/layers_0/kernel 1x64x256 ~iio
        blocks_0/net/layers_0/bias 256 -
        blocks_0/net/layers_2/kernel 9x1x128 ~-
        blocks_0/net/layers_2/bias 128 -
        blocks_0/net/layers_4/kernel 1x128x64 ~iio
        blocks_0/net/layers_4/bias 64 -""",
    "a filter for each channel under no name: PyTorch's blocks with a gate": """
        blocks/0/net/0/weight 256x64x1 oii
        blocks/0/net/0/bias 256 -
        blocks/0/net/2/weight 128x1x9 ~-
        blocks/0/net/2/bias 128 -
        blocks/0/net/4/weight 64x128x1 oii
        blocks/0/net/4/bias 64 -
        blocks/1/net/0/weight 256x64x1 oii
        blocks/1/net/0/bias 256 -
        blocks/1/net/2/weight 128x1x9 ~-
        blocks/1/net/2/bias 128 -
        blocks/1/net/4/weight 64x128x1 oii
        blocks/1/net/4/bias 64 -""",
    "a signal of one channel under no name": """
        layers_0/kernel 10x1x64 ~iio
        layers_0/bias 64 -
        layers_2/kernel 3x64x64 ~iio
        layers_2/bias 64 -
        layers_4/kernel 64x32 ~io
        layers_4/bias 32 -""",
    "few classes beside windows and colors: three of a residual network": """
        conv_init/kernel 7x7x3x64 iiio
        block_0/Conv_0/kernel 3x3x64x64 iiio
        block_0/BatchNorm_0/scale 64 -
        block_0/BatchNorm_0/bias 64 -
        fc/kernel 64x3 ~-
        fc/bias 3 -""",
    "few classes beside windows and colors: seven in PyTorch": """
        stem/weight 64x3x7x7 ~oiii
        layer1/0/conv1/weight 64x64x3x3 oiii
        layer1/0/bn1/weight 64 -
        layer1/0/bn1/bias 64 -
        class_predictor/weight 7x64 ~-
        class_predictor/bias 7 -""",
    "few classes beside windows and colors: a table of three levels": """
        stem/weight 64x3x7x7 oiii
        stem/bias 64 -
        level/weight 3x64 ~-
        layers/0/linear1/weight 256x64 oi
        layers/0/linear1/bias 256 -
        layers/0/linear2/weight 64x256 ~oi
        layers/0/linear2/bias 64 -""",
    "inputs first under PyTorch's name: a loop": """
        layer0/feed_forward/linear1_0/weight 64x256 io
        layer0/feed_forward/linear1_1/weight 64x256 io
        layer0/feed_forward/linear2/weight 256x64 io
        layer0/feed_forward/norm/scale 64 -
        output_norm/scale 64 -""",
    "inputs first under PyTorch's name: a scan with fewer keys": """
        repeat/layer/feed_forward/linear1_0/weight 4x64x256 bio
        repeat/layer/feed_forward/linear2/weight 4x256x64 bio
        repeat/layer/feed_forward/norm/scale 4x64 -
        repeat/layer/self_attention/attention/i_proj/q_proj/weight 4x64x8x16 bioo
        repeat/layer/self_attention/attention/i_proj/k_proj/weight 4x64x2x16 bioo
        repeat/layer/self_attention/attention/o_proj/weight 4x64x8x16 boii
        repeat/layer/self_attention/norm/scale 4x64 -
        output_norm/scale 64 -""",
    "inputs first under PyTorch's name: experts of a scan": """
        repeat/layer/feed_forward/gate_weight 4x64x8 bio
        repeat/layer/feed_forward/wi_0_weight 4x8x64x256 bbio
        repeat/layer/feed_forward/wo_weight 4x8x256x64 bbio
        repeat/layer/feed_forward/norm/scale 4x64 -
        output_norm/scale 64 -""",
    "PyTorch's own pair of linear layers stays outputs first": """
        layers/0/linear1/weight 256x64 oi
        layers/0/linear2/weight 64x256 oi
        layers/0/norm1/weight 64 -
        norm/weight 64 -""",
    "queries, keys and values in front: of attention with its width behind": """
        attention/qkv_proj/kernel 3x64x4x16 bioo
        attention/out/kernel 4x16x64 iio
        norm/scale 64 -""",
    "queries, keys and values in front: heads before the width": """
        attention/kv_proj/kernel 2x4x64x16 boio
        attention/q_proj/kernel 64x4x16 ioo
        attention/out/kernel 4x16x64 iio
        norm/scale 64 -""",
    "a patch is no layer's outputs: a diffusion transformer's last layer": """
        PatchEmbed_0/Conv_0/kernel 4x4x4x96 iiio
        PatchEmbed_0/Conv_0/bias 96 -
        Block_0/Dense_0/kernel 96x200 io
        Block_0/Dense_0/bias 200 -
        Block_0/Dense_1/kernel 200x96 io
        Block_0/Dense_1/bias 96 -
        FinalLayer_0/Dense_0/kernel 96x64 ~-
        FinalLayer_0/Dense_0/bias 64 -""",
    "a patch is no layer's outputs: PyTorch's pixels": """
        patch_embed/proj/weight 500x3x6x6 oiii
        patch_embed/proj/bias 500 -
        blocks/0/mlp/fc1/weight 900x500 oi
        blocks/0/mlp/fc1/bias 900 -
        blocks/0/mlp/fc2/weight 500x900 ~oi
        blocks/0/mlp/fc2/bias 500 -
        to_pixels/weight 108x500 ~-
        to_pixels/bias 108 -""",
    "all networks in one array: an actor for each seed": """
        Dense_0/kernel 5x17x64 bio
        Dense_0/bias 5x64 -
        Dense_1/kernel 5x64x64 bio
        Dense_1/bias 5x64 -
        Dense_2/kernel 5x64x9 ~bio
        Dense_2/bias 5x9 -""",
    "all networks in one array: shards of a classifier": """
        trunk/layer_0/linear/w 4x96x24 bio
        trunk/layer_0/linear/b 4x24 -
        trunk/layer_0/linear_1/w 4x24x96 bio
        trunk/layer_0/linear_1/b 4x96 -
        trunk/layer_1/linear/w 4x96x24 bio
        trunk/layer_1/linear/b 4x24 -
        trunk/layer_1/linear_1/w 4x24x96 bio
        trunk/layer_1/linear_1/b 4x96 -
        classes/linear/w 4x96x250 ~bio
        classes/linear/b 4x250 -""",
    "an embedding that is a layer: tokens in shards": """
        embedding_shard/linear/w 4x900x96 ~bio
        embedding_shard/linear/b 4x96 -
        layer_0/linear/w 4x96x24 bio
        layer_0/linear/b 4x24 -
        layer_0/linear_1/w 4x24x96 bio
        layer_0/linear_1/b 4x96 -
        layer_1/linear/w 4x96x24 bio
        layer_1/linear/b 4x24 -
        layer_1/linear_1/w 4x24x96 bio
        layer_1/linear_1/b 4x96 -
        projection_shard/linear/w 4x96x900 ~bio
        projection_shard/linear/b 4x900 -""",
    "an embedding that is a layer: items as one-hot vectors": """
        item_embedder/Dense_0/kernel 3000x48 ~io
        item_embedder/Dense_0/bias 48 -
        mlp/Dense_0/kernel 48x70 ~io
        mlp/Dense_0/bias 70 -
        mlp/Dense_1/kernel 70x48 ~io
        mlp/Dense_1/bias 48 -
        decoder/kernel 48x3000 ~io
        decoder/bias 3000 -""",
    "networks on the last axis: in Haiku": """
        mlp/linear/w 20x50x7 ~iob
        mlp/linear/b 50x7 -
        mlp/linear_1/w 50x50x7 ~iob
        mlp/linear_1/b 50x7 -
        mlp/linear_2/w 50x3x7 ~iob
        mlp/linear_2/b 3x7 -""",
    "networks on the last axis: critics": """
        hidden/kernel 17x64x5 ~iob
        hidden/bias 64x5 -
        last/kernel 64x32x5 ~iob
        last/bias 32x5 -""",
    "networks on the last axis: heads are none": """
        x/query/kernel 64x4x16 ioo
        x/query/bias 4x16 -
        x/gates/kernel 64x4x16 ~ioo
        x/gates/bias 4x16 -
        x/out/kernel 4x16x64 iio
        x/out/bias 64 -
        y/query/kernel 64x4x64 ioo
        y/query/bias 4x64 -
        y/out/kernel 4x64x64 iio
        y/out/bias 64 -""",
    "networks on the last axis: channels of a convolution are none": """
        x/conv/kernel 3x10x5 iio
        x/conv/bias 5 -
        x/dense/kernel 10x3x5 ~ioo
        x/dense/bias 3x5 -""",
    "a head as wide as the model: behind the blocks": """
        Dense_0/kernel 30x96 io
        Dense_0/bias 96 -
        Block_0/Dense_0/kernel 96x200 io
        Block_0/Dense_0/bias 200 -
        Block_0/Dense_1/kernel 200x96 io
        Block_0/Dense_1/bias 96 -
        Block_1/Dense_0/kernel 96x200 io
        Block_1/Dense_0/bias 200 -
        Block_1/Dense_1/kernel 200x96 io
        Block_1/Dense_1/bias 96 -
        Dense_1/kernel 96x96 ~io
        Dense_1/bias 96 -""",
    "a head as wide as the model: in Haiku, with a layer before it": """
        net/linear/w 9x80 io
        net/linear/b 80 -
        net/block_0/linear/w 80x80 io
        net/block_0/linear/b 80 -
        net/block_1/linear/w 80x80 io
        net/block_1/linear/b 80 -
        net/linear_1/w 80x80 io
        net/linear_1/b 80 -
        net/linear_2/w 80x80 ~io
        net/linear_2/b 80 -""",
    "learned queries: of a pool": """
        pool/query 16x64 ~-
        pool/attn/q_proj_weight 64x64 ~oi
        pool/attn/out_proj/weight 64x64 ~oi
        pool/attn/out_proj/bias 64 -
        pool/ln/weight 64 -
        pool/ln/bias 64 -""",
    "learned queries: in Linen": """
        resampler/queries 16x64 ~-
        resampler/ln/scale 64 -
        resampler/attn/query/kernel 64x4x16 ioo
        resampler/attn/query/bias 4x16 -
        resampler/attn/out/kernel 4x16x64 iio
        resampler/attn/out/bias 64 -""",
    "learned queries: a projection of that name is none": """
        block/query 64x32 ~io
        block/ln/scale 64 -
        block/mlp/kernel 64x64 io
        block/mlp/bias 64 -""",
    "a norm of each head is no width": """
        xlstm/q_proj/kernel 24x4x4 ~bio
        xlstm/proj_up/kernel 48x192 ~io
        xlstm/proj_down/kernel 96x48 io
        xlstm/outnorm/scale 4x24 -
        norm/scale 48 -""",
    "a norm of each head is no width: retention": """
        retention/group_norm/scale 4x16 -
        retention/out/kernel 64x32 io
        retention/gate/kernel 32x64 io
        retention/mix/w 16x8x8 ?
        norm/scale 32 -""",
    "positions under a name that ends like a weight's": """
        blocks/0/attn/rel_pos_h 27x64 -
        blocks/0/attn/rel_pos_w 27x64 -
        blocks/0/attn/relative_position_t 9x64 -
        blocks/0/attn/qkv/weight 192x64 oi split 64+64+64
        blocks/0/attn/qkv/bias 192 -
        blocks/0/norm/weight 64 -""",
    "tokens are a table: PyTorch's": """
        mask_tokens/weight 4x64 -
        iou/norm/weight 4 -
        mlp/0/weight 64x64 ~oi
        mlp/0/bias 64 -
        to_tokens/weight 64x48 ~oi
        norm/weight 48 -""",
    "a window of one without a bias": """
        quantizer/input_proj/weight 32x64x1 oii
        quantizer/output_proj/weight 64x32x1 oii
        encoder/conv/weight 64x3x7 oii
        encoder/conv/bias 64 -""",
    "a window of one without a bias: two axes of it": """
        mixer/fold/weight 32x64x1x1 oiii
        mixer/unfold/weight 64x32x1x1 oiii
        norm/weight 64 -""",
    "few channels inside are no head's inputs": """
        prompt/conv1/weight 4x1x2x2 oiii
        prompt/conv1/bias 4 -
        prompt/conv2/weight 16x4x2x2 oiii
        prompt/conv2/bias 16 -
        prompt/conv3/weight 64x16x1x1 ~oiii
        prompt/conv3/bias 64 -
        scorer/weight 4x64 ~oi
        scorer/bias 4 -""",
    "numbered layers: PyTorch's name with inputs first": """
        layers/0/weight 12x64 ~io
        layers/1/weight 64x48 ~io
        layers/2/weight 48x5 ~-""",
    "numbered layers: PyTorch's own": """
        layers/0/weight 64x12 oi
        layers/1/weight 48x64 oi
        layers/2/weight 5x48 ~-""",
    "numbered layers: a name that says nothing, outputs first": """
        layers/0/c_res 32x8 ~oi
        layers/1/c_res 48x32 ~oi
        layers/2/c_res 5x48 ~oi""",
    "numbered layers: a list, which has inputs first": """
        0 8x32 ~io
        1 32x48 ~io
        2 48x5 ~-""",
    "numbered layers: an encoder and its decoder say neither": """
        layers/0/theta 64x32 ~io
        layers/1/theta 32x64 ~io""",
    "no norms and biases at all: anybody's weights": """
        hidden/weight 784x256 ~-
        output/weight 256x10 ~oi""",
    "no norms and biases at all: PyTorch's blocks": """
        blocks/0/up/weight 256x64 ~oi
        blocks/0/down/weight 64x256 ~oi""",
}

# What nothing tells must stay unknown: a guess would be wrong for one of the layers that look the same.
UNKNOWN = {
    "heads first or stacked, no norm": """
        attn/wq 4x64x16 ?
        attn/wk 4x64x16 ?
        attn/wo 4x16x64 ?""",
    "heads first or stacked, the norm far away and heads that do not fill it": """
        final_norm/scale 64 -
        layers/attn/wq 4x64x64 ?
        layers/attn/wo 4x64x64 ?""",
    "a query alone": """
        query/kernel 64x4x32 ?""",
    "a query and a key of one shape": """
        query/kernel 64x4x32 ?
        key/kernel 64x4x32 ?""",
    "three axes of any name": """
        mystery 6x8x5 ?
        other 8x6x5 ?""",
    "pairs of real and imaginary numbers": """
        norm/scale 512 -
        ssm/C1 512x192x2 ?""",
    "four axes of any name": """
        tensor 4x5x6x7 ?""",
    "a flat list": """
        0 100x8 ?
        1 8x8 ?
        2 8 -""",
    "blocks that look alike both ways on axis 1": """
        inner/kernel 16x3x16 ?
        outer/kernel 16x3x16 ?""",
}


@pytest.mark.parametrize("text", [*KINDS.values(), *UNKNOWN.values()], ids=[*KINDS, *UNKNOWN])
def test_kind(text: str) -> None:
    leaves = rows(text)
    assert table(tree_of(leaves)) == {path: layout for path, _, layout in leaves}


LLAMA = """
    model/embed_tokens/weight 32000x64 -
    model/layers/0/self_attn/q_proj/weight 64x64 oi
    model/layers/0/self_attn/k_proj/weight 64x64 oi
    model/layers/0/self_attn/o_proj/weight 64x64 oi
    model/layers/0/mlp/up_proj/weight 256x64 oi
    model/layers/0/mlp/down_proj/weight 64x256 oi
    model/layers/0/input_layernorm/weight 64 -
    model/norm/weight 64 -
    lm_head/weight 32000x64 -"""
LINEN = """
    params/Embed_0/embedding 1000x64 -
    params/blocks_0/Dense_0/kernel 64x256 io
    params/blocks_0/Dense_0/bias 256 -
    params/blocks_0/Dense_1/kernel 256x64 io
    params/blocks_0/Dense_1/bias 64 -
    params/cls_token 1x1x64 -
    params/head/kernel 64x1000 -"""
SCANNED = """
    layers/norm/scale 4x64 -
    layers/up/kernel 4x64x256 bio
    layers/down/kernel 4x256x64 bio"""
JOINED = {separator: lambda path, separator=separator: path.replace("/", separator) for separator in (".", ":", "__")}
JOINED["tuple"] = lambda path: tuple(int(part) if part.isdigit() else part for part in path.split("/"))


@pytest.mark.parametrize("text", [LLAMA, LINEN, SCANNED], ids=["Llama", "Linen", "scanned"])
@pytest.mark.parametrize("join", JOINED.values(), ids=JOINED)
def test_a_flat_dictionary_is_read_as_its_nested_tree(text: str, join: Callable[[str], Any]) -> None:
    leaves = rows(text)
    tree = {join(path): jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape, _ in leaves}
    found = table({"model": tree})  # also below another key
    for path, _, layout in leaves:
        key = join(path)
        assert found[f"model/{key if isinstance(key, str) else path}"] == layout


def test_a_string_key_stays_one_component_and_a_tuple_becomes_its_parts() -> None:
    assert list(mo.assign_layouts({"a.kernel": jnp.ones((4, 5)), "a.bias": jnp.ones(5)})) == ["a.bias", "a.kernel"]
    assert list(mo.assign_layouts({("a", 0, "kernel"): jnp.ones((4, 5))})) == ["a/0/kernel"]
    layouts = {"a.kernel": None}
    assert mo.assign_layouts({"a.kernel": jnp.ones((4, 5)), "a.bias": jnp.ones(5)}, layouts)["a.kernel"] is None


def test_what_only_looks_like_a_separator() -> None:
    text = """
        dense/kernel:0 4x8 io
        dense/bias:0 8 -
        layer__norm 8 -
        layer__dense 8x4 ~io"""
    leaves = rows(text)
    assert table(tree_of(leaves)) == {path: layout for path, _, layout in leaves}


def masked(tree: dict, *hidden: str) -> dict:
    return {key: optax.MaskedNode() if key in hidden else value for key, value in tree.items()}


def test_hidden_siblings_tell_by_their_paths() -> None:
    stacked, low_rank = {"b": jnp.ones((3, 16))}, {"a": jnp.ones((16, 3)), "b": jnp.ones((3, 16))}
    assert table(stacked) == {"b": None}
    assert str(mo.assign_layouts(masked(low_rank, "a"))["b"]) == "io"
    assert mo.assign_layouts(masked({"w": jnp.ones((3, 8, 16)), "b": jnp.ones((3, 16))}, "w"))["b"] is None


def test_low_rank_pairs_are_known_where_their_kernel_is_hidden() -> None:
    shapes = {"w": (18, 8, 2048, 256), "lora_a": (18, 8, 2048, 16), "lora_b": (18, 8, 16, 256)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    found = mo.assign_layouts({"q_einsum": masked(tree, "w")})
    assert {path: str(layout) for path, layout in found.items()} == dict.fromkeys(
        ("q_einsum/lora_a", "q_einsum/lora_b"), "bbio"
    )


def test_a_last_layer_in_sight_may_not_be_the_last() -> None:
    tree = {name: {"kernel": jnp.ones(shape)} for name, shape in {"a": (17, 64), "b": (64, 23), "c": (23, 5)}.items()}
    assert mo.assign_layouts(tree)["c/kernel"] is None
    part = mo.assign_layouts(masked(tree, "c"))
    assert str(part["b/kernel"]) == "io"
