"""How llama.cpp calls the weights of a model of Llama's architecture."""

# Those of a block, by their names in a checkpoint; all end with .weight.
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
FACTORS = "rope_freqs.weight"
