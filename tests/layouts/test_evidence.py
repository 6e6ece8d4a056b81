"""Each kind of evidence on its smallest tree: names, shapes and the right layout.

``?`` stands where nothing tells, ``~`` before what is taken on weak evidence.
"""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from boundaries.rules import RULES
from boundaries.strength import STRENGTH
from boundaries.trees import TREES
from trees_as_text import UNKNOWN, rows, table, tree_of

import muon_optax as mo
from muon_optax._layouts.assigning.rules import decide
from muon_optax._layouts.paths import named_leaves
from muon_optax._layouts.strength.doubts import DOUBTS, DOUBTS_BY_NEIGHBORS

CASES = {
    "a name that no shape bears out: weights that any side may be first of": """
        block_0/mix/weight 48x128 ~oi
        block_0/norm/weight 48 -
        block_0/back_mix/weight 128x48 ~oi""",
    "a name that a bias elsewhere bears out": """
        block_0/mix/weight 48x128 oi
        block_0/norm/weight 48 -
        block_0/back_mix/weight 128x48 oi
        gate/weight 30x48 oi
        gate/bias 30 -
        out/weight 48x30 oi""",
    "a name that a query bears out, which reads the width": """
        block_0/mix/weight 48x128 oi
        block_0/norm/weight 48 -
        block_0/back_mix/weight 128x48 oi
        block_0/q_proj/weight 96x48 oi
        block_0/o_proj/weight 48x96 oi""",
    "a name that an adapter's wrapper bears out": """
        block_0/norm/weight 48 -
        block_0/q_proj/base_layer/weight 96x48 oi
        block_0/o_proj/base_layer/weight 48x96 oi
        block_0/o_proj/lora_A/default/weight 16x96 oi
        block_0/o_proj/lora_B/default/weight 48x16 oi""",
    "an array of the model, by its name alone": """
        text_projection 48x64 ~io
        head_norm/scale 64 -
        mlp/up/kernel 48x96 io
        mlp/down/kernel 96x48 io
        norm/scale 48 -""",
    "rows without a bias among layers that have one": """
        levels/weight 20x48 ~oi
        proj/weight 48x20 oi
        proj/bias 48 -
        block_0/lin1/weight 96x48 oi
        block_0/lin1/bias 96 -
        block_0/lin2/weight 48x96 oi
        block_0/lin2/bias 48 -""",
    "outputs so few that another side has the size by chance": """
        parts/kernel 48x3 ~io
        parts/bias 3 -
        colors/kernel 3x48 io
        colors/bias 48 -
        mix/kernel 48x48 io
        mix/bias 48 -""",
    "a head that another layer may read": """
        logits/kernel 48x30 ~-
        after/kernel 30x48 io
        norm/scale 48 -""",
    "a layer by its array's name, in what is called an embedding": """
        embedding/kernel 30x48 ~-
        mix/kernel 48x48 io
        norm/scale 48 -""",
    "heads or blocks of a small size, which no output takes back": """
        q_proj/kernel 48x6x6 ~ioo
        k_proj/kernel 48x6x6 ~ioo
        mlp/up/kernel 48x64 io
        mlp/down/kernel 64x48 io
        norm/scale 48 -""",
    "arrays that lie alone in containers of their own": """
        block_0/attn/q_proj/w/0 48x4x8 ioo
        block_0/attn/o_proj/w/0 48x4x8 oii
        block_0/attn/per_dim_scale/scale/0 8 -
        block_0/ln_0/scale/0 48 -
        block_0/ffn/up/w/0 48x96 io
        block_0/ffn/down/w/0 96x48 io
        embed_linear/w/0 1000x48 ~-
        embed_linear/b/0 1000 -""",
    "logits of attention are no head of the model": """
        pool/to_attn_logits/weight 48x48x1x1 ~oiii
        pool/to_attn_logits/bias 48 -
        out/weight 30x48 ~-
        out/bias 30 -""",
    "a stacked array that is called a head": """
        stack/pair_logits/weights 4x48x8 ~-
        stack/norm/scale 4x48 -
        stack/mix/weights 4x48x48 ~bio""",
    "experts whose names contradict each other": """
        moe/linear/w 4x48x192 ~bio
        moe/linear_v/w 4x48x192 ~bio
        moe/linear_1/w 4x192x48 ~bio
        router/w 48x4 io
        norm/scale 48 -""",
    "a projection beside others that no rule can read": """
        attn/gating_query/weights 48x48 ~io
        attn/q_projection/weights 4x8x48 ?
        attn/k_projection/weights 4x8x48 ?
        up/weights 48x96 io
        down/weights 96x48 io
        norm/scale 48 -""",
    "a transposed convolution within a module of that name": """
        up/transp_conv/conv/weight 48x24x2x2 ~ioii
        up/transp_conv/norm/weight 24 -""",
    "a last layer whose outputs only a doubtful table has": """
        0/0 320x48 ~io
        1/0 48x96 ~io
        1/1 96 -
        2/0 96x48 io
        2/1 48 -
        3/0 48x320 ~io
        3/1 320 -""",
    "an even window without a bias may upsample": """
        stage/layer/weight 48x30x2x2 ~oiii
        stage/layer2/weight 30x48x3x3 ~oiii
        norm/weight 30 -
        norm/bias 30 -""",
    "a key that fits no query of its attention": """
        attn/query/kernel 24x4x8 ioo
        attn/key/kernel 9x5x12 ?
        attn/out/kernel 4x8x24 iio""",
    "heads first, and beside them what is no projection": """
        attn/query/kernel 4x24x6 oio
        attn/key/kernel 4x24x6 oio
        attn/out/kernel 4x6x24 iio
        attn/relative/kernel 5x24x6 ?
        norm/scale 24 -""",
    "einsums of Gemma, whose width the query and the output tell": """
        attn/attn_vec_einsum/w 8x256x2304 iio
        attn/kv_einsum/w 2x4x2304x256 boio
        attn/q_einsum/w 8x2304x256 oio""",
    "attention in layers without a norm or a bias: heads or layers": """
        self_attention/query/w 12x64x64 ?
        self_attention/key/w 12x64x64 ?
        self_attention/value/w 12x64x64 ?
        self_attention/post/w 12x64x64 ?
        self_attention/relative_bias/wrb 12x16x32 -""",
    "layers on the second axis, and no attention": """
        mlp/wi_0/kernel 24x13x96 ~ibo
        mlp/wi_1/kernel 24x13x96 ~ibo
        mlp/wo/kernel 96x13x24 ~ibo""",
    "a bias of the weight's own shape": """
        mixing/kernel 3x4x5 ?
        mixing/bias 3x4x5 -""",
    "a bias as long as the first axis, before a window of one": """
        window/kernel 6x4x1 oii
        window/bias 6 -""",
    "a transposed convolution under another name": """
        conv/kernel 3x3x8x16 iioi
        conv/bias 8 -""",
    "blocks whose sides only three axes have": """
        in_proj/kernel 4x6x8 ?
        mixing/kernel 24x32x5 ?""",
    "a classifier of PyTorch behind its norm": """
        classifier/0/weight 768 -
        classifier/0/bias 768 -
        classifier/2/weight 1000x768 -
        classifier/2/bias 1000 -""",
    "a classifier of PyTorch, square": """
        classifier/0/weight 768 -
        classifier/0/bias 768 -
        classifier/2/weight 768x768 -
        classifier/2/bias 768 -""",
    "a head of two layers of PyTorch": """
        logit_head/layer_norm/weight 480 -
        logit_head/layer_norm/bias 480 -
        logit_head/linear1/weight 480x480 oi
        logit_head/linear1/bias 480 -
        logit_head/linear2/weight 33x480 -
        logit_head/linear2/bias 33 -""",
    "a window of two by two behind outputs and inputs": """
        layer/kernel 16x8x2x2 oiii
        fc/kernel 16x10 ~-""",
    "a cell with other inputs than hidden units": """
        lstm_cell/kernel 24x64 io split 16+16+16+16
        lstm_cell/recurrent_kernel 16x64 io split 16+16+16+16
        lstm_cell/bias 64 -""",
    "experts by their router": """
        moe/gate/kernel 6x4 ~io
        moe/wi_0 4x6x12 bio
        moe/wo 4x12x6 bio
        moe/shared_experts/wi_0/kernel 6x12 io""",
    "experts stored outputs first": """
        router/kernel 6x4 io
        up_proj 4x12x6 boi
        down_proj 4x6x12 boi""",
    "experts by name": """
        experts/up 4x6x8 ~bio
        experts/down 4x8x6 ~bio
        dense/kernel 6x5 ~-""",
    "attention of a model called moe": """
        moe_lm/block/attn/qkv/kernel 6x3x4x5 iooo
        moe_lm/block/attn/qkv/bias 3x4x5 -""",
    "compressed queries, keys and values": """
        norm/scale 64 -
        attn/q_norm/scale 24 -
        attn/kv_norm/scale 16 -
        attn/wq_a/kernel 64x24 io
        attn/wq_b/kernel 24x4x20 ioo
        attn/wkv_a/kernel 64x20 io
        attn/wkv_b/kernel 16x4x32 ioo
        attn/out/kernel 4x16x64 iio""",
    "queries of double width": """
        norm/scale 64 -
        attn/query/kernel 64x4x32 ioo
        attn/key/kernel 64x2x16 ioo
        attn/out/kernel 64x64 io
        attn/key_norm/scale 16 -""",
    "cross attention without biases": """
        a/to_q/kernel 64x4x8 ioo
        a/to_k/kernel 96x4x8 ioo
        a/to_v/kernel 96x4x8 ioo
        a/to_out_0/kernel 4x8x64 iio""",
    "weights that end in w": """
        attention/query_w 5x8x2x4 bioo
        attention/gating_w 5x8x2x4 bioo
        attention/gating_b 5x2x4 -
        attention/output_w 5x2x4x8 biio
        attention/output_b 5x8 -""",
    "one key and value head": """
        attn/q_proj/w 64x4x16 ioo
        attn/k_proj/w 64x1x16 ioo
        attn/o_proj/w 4x16x64 iio""",
    "as many heads as inputs": """
        wq 4x4x5 ioo
        bq 4x5 -
        wo 4x5x4 iio""",
    "a norm's scale for each head is no stack": """
        query/kernel 6x4x5 ioo
        out/kernel 4x5x6 iio
        query_norm/scale 4x5 -""",
    "einsums with the heads in front": """
        n/scale 32 -
        a/q_einsum/kernel 4x32x8 oio
        a/kv_einsum/kernel 2x2x32x8 boio
        a/attn_vec_einsum/kernel 4x8x32 iio""",
    "the same on axis 1": """
        n/scale 32x3 -
        a/q_einsum/w 4x3x32x8 obio
        a/kv_einsum/w 2x3x1x32x8 bboio
        a/attn_vec_einsum/w 4x3x8x32 ibio""",
    "gates beside the linear layer": """
        mlp/gating_einsum 2x8x12 ~bio
        mlp/linear 12x8 io
        other/gating_einsum 2x12x8 ~boi
        other/linear 12x8 io
        moe/gating_einsum 4x2x12x8 ~bboi
        moe/linear 4x12x8 ~bio
        moe/router_logits 8x4 -""",
    "a bias that fits the first axis only": """
        c_attn/kernel 24x8 oi split 8+8+8
        c_attn/bias 24 -
        c_proj/kernel 8x8 ~oi
        c_proj/bias 8 -""",
    "a bias that fits the last axis beats the name": """
        fc/weight 8x12 io
        fc/bias 12 -""",
    "PyTorch's names": """
        linear/weight 8x6 oi
        linear/bias 8 -
        conv1/weight 8x6x3x3 oiii
        conv1/bias 8 -""",
    "Equinox's shapes without its types": """
        conv/weight 8x3x3x3 oiii
        conv/bias 8x1x1 -
        mix/weight 8x1x7x7 -
        mix/bias 8x1x1 -""",
    "Haliax without its types": """
        layers/ln/weight/0 3x64 -
        layers/up_proj/weight/0 3x128x64 boi
        layers/down_proj/weight/0 3x64x128 boi""",
    "depthwise, a single filter each": """
        depthwise/kernel 3x3x8x1 -
        x/depthwise_kernel 3x8x1 -
        x/pointwise_kernel 1x8x16 iio
        conv1d/kernel 4x1x384 -""",
    "a first convolution of one channel": """
        conv_layers/0/conv/kernel 10x1x12 iio
        conv_layers/1/conv/kernel 3x12x12 iio""",
    "patches of a single channel": """
        patch_embed/proj/kernel 16x16x1x768 iiio
        patch_embed/proj/bias 768 -
        block/kernel 768x768 ~io""",
    "a depthwise one before a pointwise one": """
        Conv_0/kernel 3x3x1x12 -
        Conv_1/kernel 1x1x12x24 ~iiio""",
    "Linen's transposed kernel": """
        ConvTranspose_0/kernel 3x3x8x4 iioi
        ConvTranspose_0/bias 8 -""",
    "Keras' transposed convolution of equal widths": """
        conv2d_transpose/kernel 3x3x8x8 iioi
        conv2d_transpose/bias 8 -""",
    "one-dimensional convolutions": """
        Conv_0/kernel 3x8x16 iio
        Conv_1/kernel 3x16x8 ~iio""",
    "heads of attention": """
        head_0/query/kernel 64x16 ~io
        Head_1/key/kernel 64x16 ~io""",
    "a whole network called classifier": """
        classifier/conv/kernel 3x3x3x8 iiio
        classifier/dense1/kernel 8x32 io
        classifier/dense2/kernel 32x10 -""",
    "heads by name": """
        logitdense/kernel 8x10 -
        half_logits/weights 8x10 -
        predictions/kernel 8x10 -
        mlm_head_dense/kernel 8x10 -
        value_head/kernel 8x5 -
        unembed/kernel 8x10 -
        per_head/kernel 8x10 ~io""",
    "a head by the vocabulary": """
        token/embedding 100x8 -
        last/kernel 8x100 -
        first/kernel 8x8 io""",
    "what only sounds like a norm, an embedding or a head": """
        normalizer_proj/kernel 6x8 io
        embed_dim_proj/kernel 6x8 io
        output_proj/kernel 6x8 io
        head_dim_proj 6x8 ~io
        predictions/transform/dense/kernel 8x8 io
        predictions/transform/norm/scale 8 -""",
    "embeddings": """
        wte 6x8 -
        tok_emb 6x8 -
        global_pos_embed/weight 6x8 -
        reg_tokens 6x8 -
        embed_tokens/weight 6x8 -""",
    "no weights by name": """
        dense/kernel 8x8 ~io
        params 4x4 ?
        log_step 4x4 ?
        log_std 4x4 ?
        codebook 16x8 ?
        inducing_inputs 16x8 ?
        inducing_vectors 16x8 ?
        mystery 6x8 ?""",
    "vectors of every kind": """
        n/scale 64x12 -
        sinks 8x12 -
        res_beta 4x4 -
        value/kernel 512x1 -
        coefs 4x4x4 -
        up/kernel 64x12x64 ibo""",
    "queries, keys and values whose siblings are masked": """
        q/kernel 64x8x8 ~ioo
        k/kernel 64x8x8 ~ioo""",
    "the same, and heads don't fill the width": """
        query/kernel 48x8x8 ?
        key/kernel 48x8x8 ?""",
    "axis 1 in blocks of equal width": """
        norm/scale 16x3 -
        inner/kernel 16x3x16 ibo
        outer/kernel 16x3x16 ibo""",
    "axis 1 in blocks of equal width, without norms": """
        inner/kernel 16x3x16 ?
        outer/kernel 16x3x16 ?""",
    "axis 1, without norms": """
        query/kernel 6x3x4x5 ~iboo
        out/kernel 4x3x5x6 ~ibio""",
    "axis 1 told by a bias": """
        up/kernel 6x3x12 ibo
        up/bias 12x3 -""",
    "as many layers as heads on axis 1": """
        n/scale 64x4 -
        a/query/kernel 64x4x4x16 iboo
        a/out/kernel 4x4x16x64 ibio""",
    "as wide as there are layers": """
        norm/scale 4x4 -
        inner/kernel 4x4x4 ?""",
    "a hidden layer with both gates, on axis 1": """
        n/scale 64x3 -
        mlp/wi/kernel 64x3x2x128 ~iboo
        mlp/wo/kernel 128x3x64 ibo
        moe/gate/kernel 64x3x4 ibo
        moe/wi_0 4x3x64x32 bbio
        moe/wi_0_bias 4x3x32 -""",
    "a stack in front": """
        norm/scale 3x16 -
        inner/kernel 3x16x16 bio
        outer/kernel 3x16x16 bio""",
    "arrays of a stack whose names say nothing": """
        a 3x8x16 ?
        b 3x16x8 ?""",
    "a flat list": """
        0 100x8 ?
        1 8x8 ?
        2 8 -""",
    "a list of pairs": """
        0/0 6x8 io
        0/1 8 -
        1/0 8x2 ~io
        1/1 2 -""",
    "as many experts as layers, and no name says so": """
        wi 8x8x6x12 ?
        wo 8x8x12x6 ?""",
    "a general dense layer without a bias": """
        dense/kernel 6x3x5 ?""",
    "PyTorch's transposed convolution": """
        conv_transpose/weight 8x6x3x3 ~ioii""",
    "LoRA": """
        q/kernel 64x64 io
        q/lora_a 64x4 io
        q/lora_b 4x64 io""",
    "LoRA of einsums (gemma 3.3)": """
        norm/scale 640 -
        q_einsum/lora/a 640x4 io
        q_einsum/lora/b 4x4x256 ioo
        attn_vec_einsum/lora/a 4x256x4 iio
        attn_vec_einsum/lora/b 4x640 io
        other/w_lora_a 8x640 ~io
        other/w_lora_b 640x8 ~io""",
    "LoRA in a user's own tree": """
        w 6x6 ~io
        a 6x2 ~io
        b 2x6 ~io""",
    "last layers that nothing follows (transformers 4.53: BERT's tasks, DistilBERT)": """
        bert/layer/dense/kernel 768x3072 ~io
        bert/layer/dense/bias 3072 -
        cls/seq_relationship/kernel 768x2 -
        qa_outputs/kernel 768x2 -
        score/kernel 768x3 -
        expert_outputs/kernel 3072x768 io
        pre_classifier/kernel 768x768 io
        classifier/kernel 768x2 -""",
    "layers in an embedder (transformers: ResNet, ViT, CLIP; flaxdiff; tunix' Gemma 4)": """
        embedder/embedder/convolution/kernel 7x7x3x64 iiio
        embeddings/patch_embeddings/projection/kernel 16x16x3x768 iiio
        embeddings/patch_embeddings/projection/bias 768 -
        embeddings/patch_embedding/kernel 32x32x3x768 iiio
        embeddings/position_embedding/embedding 50x768 -
        embeddings/token_type_embeddings/weight 2x768 -
        time_embed/layers_1/DenseGeneral_0/kernel 256x1024 ~io
        embedder/input_embedding 1000x1536 -
        embedder/per_layer_model_projection/w 1536x12x256 ~-""",
    "a layer into a wider stream is no router (tunix' Gemma 4)": """
        mapping/kernel 1536x12x256 ?
        per_layer_projection/kernel 256x1536 io""",
    "halves of complex arrays (flaxdiff's S5)": """
        norm/scale 256 -
        ssm/kernel 256x256 io
        ssm/B_re 64x256 ?
        ssm/C_im 256x64 ?""",
    "a wrapper in a wrapper (flowjax's block neural flow)": """
        layers/0/0/weight/weight/args/0 2x48x6 boi
        layers/0/0/weight/scale/args/0 2x48x1 -
        layers/0/0/bias 2x48 -
        layers/1/0/weight/weight/args/0 2x6x48 ~boi
        layers/1/0/weight/scale/args/0 2x6x1 -
        layers/1/0/bias 2x6 -""",
    "a square weight among siblings with the inputs first (Haliax's MLP)": """
        layers/0/weight/0 64x128 io
        layers/0/bias/0 128 -
        layers/1/weight/0 128x128 ~io
        layers/1/bias/0 128 -""",
    "queries of two groups of two heads (Levanter's Llama)": """
        norm/weight/0 64 -
        a/q_proj/weight/0 2x2x16x64 ~oooi
        a/k_proj/weight/0 2x16x64 ~ooi
        a/o_proj/weight/0 64x4x16 ~oii""",
    "as many heads in each, outputs first (Levanter's GPT-2)": """
        ln/weight/0 64 -
        attn/c_attn/weight/0 3x4x16x64 ~oooi
        attn/c_proj/weight/0 64x4x16 oii
        mlp/c_fc/weight/0 256x64 ~oi""",
    "Megatron's names, inputs first (Haliax's layers)": """
        norm/weight/0 512 -
        attn/query_key_value/weight/0 512x3x8x96 ~iooo
        mlp/dense_h_to_4h/weight/0 512x2048 io
        mlp/dense_4h_to_h/weight/0 2048x512 io""",
    "weights with an index (e3nn-jax's Linear beside a Dense)": """
        mlp/Dense_0/kernel 17x64 ~io
        linear_up/w[0,0]_8x0e,16x0e 8x16 ~io
        linear_up/w[1,1]_3x1o,8x1o 3x8 ~io""",
}


BOUNDARIES = {
    f"{rule}: {name}": tree
    for rule, text in (RULES | TREES | STRENGTH).items()
    for name, _, tree in (block.strip().partition("\n") for block in text.split("# ")[1:])
}


@pytest.mark.parametrize("text", (CASES | BOUNDARIES).values(), ids=(CASES | BOUNDARIES).keys())
def test_evidence(text: str):
    leaves = rows(text)
    expected = {path: layout for path, _, layout in leaves}
    assert table(tree_of(leaves)) == expected


@pytest.mark.parametrize("size", [6, 4])
def test_names_of_scopes_around_do_not_matter(size: int):
    leaves = rows(CASES["compressed queries, keys and values"])
    renamed = [(f"params/my_model/{size}/{path}", shape, layout) for path, shape, layout in leaves]
    assert table(tree_of(renamed)) == {path: layout for path, _, layout in renamed}


# What is printed, with a tree whose first leaf is doubted for it.
DOUBTED = {
    "experts without a name": "moe/linear/kernel 9x64x32\nrouter/kernel 64x9\nnorm/scale 64",
    "heads outside attention": "mixer/u_dense/kernel 64x5x7\nmixer/out/kernel 5x7x64\nnorm/scale 64",
    "many axes": "self_attention/w_q/weight 2x2x16x64\nself_attention/o_proj/weight 64x4x16\nnorm/weight 64\n"
    "mlp/up/weight 64x128\nmlp/down/weight 128x64",
    "one channel": "layers_0/kernel 10x10x1x8\nlayers_0/bias 8\nlayers_1/kernel 3x3x8x8\nlayers_1/bias 8\nnorm/scale 8",
    "window by shape": "places/kernel 4x4x16x8",
    "may be transposed": "up/weight 16x16x2x2\nup/bias 16",
    "window or stack": "mix/kernel 3x16x40\nmix/bias 40",
    "square": "a/weights 64x64\nb/weights 64x32\nb/bias 32\nc/weights 32x64\nc/bias 64\nnorm/scale 64",
    "may be the last layer": "x/a/kernel 64x20\ny/b/kernel 20x32\nnorm/scale 64\nlast_norm/scale 32",
    "name against width": "blocks_0/q_proj/kernel 32x64\nblocks_1/q_proj/kernel 32x64\nnorm/scale 64",
}


@pytest.mark.parametrize("doubt", DOUBTED)
def test_a_doubt_is_printed_behind_the_evidence(doubt: str):
    leaves = [(path, shape, None) for path, shape, _ in rows(DOUBTED[doubt])]
    first = decide(named_leaves(tree_of(leaves)))[leaves[0][0]]
    assert (first.weak, first.why.rpartition("; ")[2]) == (True, doubt)


def test_every_doubt_is_tested():
    assert {text for _, text in (*DOUBTS, *DOUBTS_BY_NEIGHBORS)} == set(DOUBTED)


def test_integers_are_refused_by_init_and_not_warned_about_before():
    tree = {"table": jax.ShapeDtypeStruct((4, 5), jnp.int32), "w": jax.ShapeDtypeStruct((4, 5), jnp.complex64)}
    assert table(tree) == {"table": None, "w": UNKNOWN}


def test_each_decision_says_why():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decisions = decide(named_leaves(tree_of(rows(CASES["einsums with the heads in front"]))))
    assert {path: decision.why for path, decision in decisions.items()} == {
        "n/scale": "norm",
        "a/q_einsum/kernel": "einsum + width",
        "a/kv_einsum/kernel": "einsum + width",
        "a/attn_vec_einsum/kernel": "einsum + width",
    }


def test_what_is_no_matrix_says_why():
    text = """
        norm/scale 8 -
        dense/bias 8 -
        gate 8 -
        temperature 1 -
        model/embed/a/table 100x8 -
        embed/a/b/c/pos_table 50x8 -
        model/tok_embeddings/weight 100x8 -
        model/lm_head/kernel 8x90 -"""
    tree = tree_of(rows(text)) | {"scalar": jnp.ones(()), "count": jax.ShapeDtypeStruct((4, 5), jnp.int32)}
    assert {path: decision.why for path, decision in decide(named_leaves(tree)).items()} == {
        "norm/scale": "norm",
        "dense/bias": "bias",
        "gate": "vector",
        "temperature": "vector",
        "model/embed/a/table": "embedding: embed",
        "embed/a/b/c/pos_table": "embedding: pos_table",
        "model/tok_embeddings/weight": "embedding: tok_embeddings",
        "model/lm_head/kernel": "head: lm_head",
        "scalar": "scalar",
        "count": "integers",
    }


class Wrapped(eqx.Module):
    """As paramax wraps a weight: function and arguments."""

    args: tuple[Any, ...]


class ScoreHead(eqx.Module):
    dense: eqx.nn.Linear


class MultiHead(ScoreHead): ...


class AttentionHead(ScoreHead): ...


class Encoder(ScoreHead): ...


class Axis(NamedTuple):
    name: str
    size: int


class NamedArray(eqx.Module):
    array: Any
    axes: Any = eqx.field(static=True)


class Linear(eqx.Module):
    weight: NamedArray
    In: Any = eqx.field(static=True)
    Out: Any = eqx.field(static=True)


@pytest.fixture
def as_haliax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Haliax's classes are known by their module and name."""
    monkeypatch.setattr(NamedArray, "__module__", "haliax.core")
    monkeypatch.setattr(Linear, "__module__", "haliax.nn.linear")


LINEAR = eqx.nn.Linear(3, 4, key=jax.random.key(0))


def test_a_layers_type_holds_below_a_wrapper():
    wrapped = eqx.tree_at(lambda layer: layer.weight, LINEAR, Wrapped((jnp.ones((4, 3)), jnp.ones((4, 1)))))
    assert table(wrapped) == {"weight/args/0": "oi", "weight/args/1": None, "bias": None}


def test_a_class_called_head_is_a_head():
    assert table(ScoreHead(LINEAR)) == {"dense/weight": None, "dense/bias": None}


@pytest.mark.parametrize("kind", [MultiHead, AttentionHead, Encoder])
def test_no_other_class_is_a_head(kind: type[ScoreHead]):
    assert table(kind(LINEAR)) == {"dense/weight": "oi", "dense/bias": None}


def test_a_type_beats_a_name():
    assert table({"norm": LINEAR}) == {"norm/weight": "oi", "norm/bias": None}


@pytest.mark.usefixtures("as_haliax")
def test_named_axes_are_exact():
    axes = tuple(Axis(name, size) for name, size in (("layers", 2), ("heads", 3), ("size", 4), ("embed", 5)))
    layer = Linear(NamedArray(jnp.ones((2, 3, 4, 5)), axes), axes[3], axes[1:3])
    assert table({"proj": layer}) == {"proj/weight/array": "booi"}


def later_named_array() -> type:
    """Haliax's class that keeps the names of its axes, and reads their sizes off its array."""

    class NamedArray(eqx.Module):
        array: Any
        axis_names: tuple[str, ...] = eqx.field(static=True)

        @property
        def axes(self) -> Any:
            return tuple(Axis(name, size) for name, size in zip(self.axis_names, self.array.shape, strict=True))

    NamedArray.__module__ = "haliax.core"
    return NamedArray


@pytest.mark.usefixtures("as_haliax")
def test_named_axes_of_hidden_arrays():
    weight = later_named_array()(jnp.ones((4, 5)), ("hidden", "embed"))
    params = {"proj": Linear(weight, Axis("embed", 5), Axis("hidden", 4)), "bias": jnp.ones(3)}
    assert table(params) == {"proj/weight/array": "oi", "bias": None}
    optimizer = mo.muon(1e-2)  # each of its two branches hides the arrays of the other
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(updates))


def test_freezing_all_but_queries_makes_no_matrices_of_features():
    params = tree_of(rows("q/kernel 48x8x8 ?"))
    with pytest.warns(UserWarning, match="No rule knows.*'q/kernel'"):
        assert mo.assign_layouts(params) == {"q/kernel": None}
