"""Which precision a layer runs in, read from the log of TensorRT-RTX and from engine inspectors of 10.x and 11.x."""

from __future__ import annotations

import json

from autocomp.runtimes._trt_layers import Kernel, Tensor, kernels_from_inspector, kernels_from_log, layer_precisions

LOG = """Layers:
Name: __myl_pad_0, LayerType: kgen, Inputs: [ { Name: input, Dimensions: [1,3,32,32], Strides: [3072,1024,32,1], \
Datatype: Float, Format: (Linear) Row major linear format }], Constants: [ { Name: c, Dimensions: [1,1,32,32], \
Datatype: Int8, Format: (NHWC) Channel major format }], Outputs: [ { Name: q, Dimensions: [1,4,32,32], Datatype: Int8, \
Format: (NHWC) }], TacticName: __myl_x, StreamId: 0, Metadata: [ONNX Layer: input:q][ONNX Layer: conv]
Name: conv_myl0_1, LayerType: correlation, Inputs: [ { Name: q, Dimensions: [1,4,32,32], Datatype: Int8, Format: \
(NHWC) }], Constants: [ { Name: w, Dimensions: [16,4,7,7], Datatype: Int8, Format: (NHWC) }, { Name: s, Dimensions: \
[1,16,1,1], Datatype: Float, Format: (NHWC) }], Outputs: [ { Name: y, Dimensions: [1,16,16,16], Datatype: Half, \
Format: (NHWC) }], TacticName: CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: conv][ONNX Layer: input:dq]
Name: fc, LayerType: gemm, Inputs: [ { Name: y, Dimensions: [1,32], Datatype: Half, Format: (Linear) }], TacticName: \
CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: fc]

I/O Tensors:
 Name: input, IOMode: Input, DataType: Float
"""


def test_log() -> None:
    kernels = kernels_from_log(LOG)
    assert [(k.name, k.kind) for k in kernels] == [
        ("__myl_pad_0", "kgen"),
        ("conv_myl0_1", "correlation"),
        ("fc", "gemm"),
    ]
    assert kernels[1] == Kernel(
        name="conv_myl0_1",
        kind="correlation",
        nodes=("conv", "input:dq"),
        inputs=(Tensor(type="int8", shape=(1, 4, 32, 32)),),
        constants=(Tensor(type="int8", shape=(16, 4, 7, 7)), Tensor(type="float32", shape=(1, 16, 1, 1))),
        outputs=(Tensor(type="float16", shape=(1, 16, 16, 16)),),
    )
    nodes = {"conv": "conv.weight", "fc": "fc.weight", "nowhere": "lost.weight"}
    assert layer_precisions(kernels, nodes) == {"conv.weight": "int8", "fc.weight": "float16"}
    assert kernels_from_log("") == []


def convolution(data: str, weights: str, **more: object) -> dict[str, object]:
    """As documented for 10.x, with "Format/Datatype"."""
    return {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [16, 512, 28, 28], "Format/Datatype": data}],
        "Outputs": [{"Name": "y", "Dimensions": [16, 256, 28, 28], "Format/Datatype": data}],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 131072},
        "Bias": {"Type": "Float", "Count": 256},
        "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
        **more,
    }


def precision(layer: dict[str, object]) -> str:
    kernels = kernels_from_inspector(json.dumps({"Layers": [layer], "Bindings": ["x", "y"]}))
    return layer_precisions(kernels, {"conv": "w"})["w"]


def test_inspector_of_10() -> None:
    vectors = "Thirty-two wide channel vectorized row major Int8 format."
    assert precision(convolution(vectors, "Int8")) == "int8"
    assert precision(convolution("Row major linear FP32", "Int8")) == "float32"  # dequantized, then float
    assert precision(convolution("Channel major FP16 format where channel % 8 == 0", "Half")) == "float16"
    assert precision(convolution("Row major linear BFloat16", "BFloat16")) == "bfloat16"


def test_inspector_of_11() -> None:
    split = [{"Name": "x", "Dimensions": [1, 64, 8, 8], "Datatype": "Int8", "Format": "kCHW32"}]
    assert precision(convolution("", "Int8", Inputs=split)) == "int8"
    half = [{"Name": "x", "Dimensions": [1, 64], "Datatype": "Half", "Format": "Row major"}]
    constants = [{"Name": "w", "Dimensions": [64, 64], "Datatype": "Int4", "Format": "Row major"}]
    assert precision(convolution("", "", Inputs=half, Constants=constants, Weights=None)) == "int4"


def test_inspector_without_details() -> None:
    assert kernels_from_inspector(json.dumps({"Layers": ["conv + relu", "fc"]})) == []
    assert kernels_from_inspector("") == []


def kernel(weight: str, activation: str, kind: str = "gemm", nodes: tuple[str, ...] = ("n",)) -> Kernel:
    return Kernel(
        name="k",
        kind=kind,
        nodes=nodes,
        inputs=(Tensor(type=activation, shape=(1, 8)),),
        constants=(Tensor(type=weight, shape=(8, 8)), Tensor(type="float32", shape=(1,))),
        outputs=(),
    )


def test_what_counts_as_a_precision() -> None:
    cases = {
        ("int8", "int8"): "int8",
        ("float8", "float8"): "float8",
        ("int4", "float16"): "int4",
        ("int8", "float16"): "float16",
        ("float32", "float32"): "float32",
        ("float16", "int8"): "float32",  # nothing multiplies these two: it was dequantized somewhere
    }
    found = {pair: layer_precisions([kernel(*pair)], {"n": "w"})["w"] for pair in cases}
    assert found == cases


def test_a_weight_of_two_nodes_counts_as_the_wider() -> None:
    kernels = [kernel("int8", "int8", nodes=("a",)), kernel("float16", "float16", nodes=("b",))]
    assert layer_precisions(kernels, {"a": "w", "b": "w"}) == {"w": "float16"}
    assert layer_precisions(kernels[::-1], {"b": "w", "a": "w"}) == {"w": "float16"}


def test_generated_kernels_tell_only_where_no_other_does() -> None:
    generated = kernel("float16", "float32", kind="kgen")  # reads floats before its own cast
    assert layer_precisions([generated], {"n": "w"}) == {"w": "float16"}
    assert layer_precisions([generated, kernel("int8", "int8")], {"n": "w"}) == {"w": "int8"}
