"""Which operator domains and operators a graph may use, and why.

Allowed: every operator of the standard domains, and those of `com.microsoft` that quantisation, graph fusion and the
usual exporters write. Refused: any other domain (its code would have to be loaded from the vendor), and the rest of
`com.microsoft`, above all what reads files or embeds compiled code (EPContext, Snpe) and what runs whole generation
loops (BeamSearch, GreedySearch, Sampling, WhisperBeamSearch: their cost has no bound that the graph shows).

No standard operator is denied: none of ai.onnx, ai.onnx.ml or ai.onnx.preview touches files, network or processes.
Those that can run long or allocate much (Loop, Scan, ConstantOfShape, Tile, Expand, Range, Resize) are bounded when
they run, by deadline, memory and output size, because lawful models need them.
"""

from __future__ import annotations

# Highest opset per domain that the pinned ONNX Runtime 1.32 accepts (it refuses the next one at load).
MAX_OPSET: dict[str, int] = {"ai.onnx": 28, "ai.onnx.ml": 5, "ai.onnx.preview": 1, "com.microsoft": 1}
MIN_IR_VERSION = 3
MAX_IR_VERSION = 14
STANDARD_DOMAINS = frozenset({"ai.onnx", "ai.onnx.ml", "ai.onnx.preview"})
CONTRIB_DOMAIN = "com.microsoft"
# Quantisation (onnxruntime.quantization, static and dynamic, 8 and 4 bits).
_QUANTISED = """
    QuantizeLinear DequantizeLinear DynamicQuantizeMatMul DynamicQuantizeLSTM MatMulIntegerToFloat MatMulInteger16
    MulInteger ReduceSumInteger MatMulNBits GatherBlockQuantized QGemm QLinearAdd QLinearMul QLinearConv QLinearConcat
    QLinearAveragePool QLinearGlobalAveragePool QLinearLeakyRelu QLinearReduceMean QLinearSigmoid QLinearSoftmax
    QLinearWhere QAttention QEmbedLayerNormalization NhwcMaxPool
"""
# Fusion (onnxruntime.transformers.optimizer) and the older exporters.
_FUSED = """
    Gelu FastGelu BiasGelu QuickGelu FusedMatMul FusedConv FusedGemm TransposeMatMul Attention MultiHeadAttention
    GroupQueryAttention RotaryEmbedding EmbedLayerNormalization SkipLayerNormalization BiasSoftmax BiasAdd GroupNorm
    SkipSimplifiedLayerNormalization SkipGroupNorm RelativePositionBias Inverse Trilu Unique ExpandDims Range Pad
    GatherND GridSample CDist CropAndResize Rfft Irfft ComplexMul ComplexMulConj MurmurHash3
    ConvTransposeWithDynamicPads
"""
CONTRIB_OPERATORS = frozenset((_QUANTISED + _FUSED).split())
RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def domain_of(domain: str) -> str:
    """The standard domain is written both as `` and as `ai.onnx`."""
    return domain or "ai.onnx"
