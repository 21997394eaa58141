"""Makes the corpus of damaged and hostile ONNX files beside this file, and expected.tsv, which says of each what
must happen.

    python conformance/hostile/make.py      (in the environment that scripts/setup makes)

`refuse` means that loading, compiling or running the file must end in an error; `load` that it is odd but valid
and must work; `either` that both are right. None may crash, hang, read outside its own folder or take more than a little memory. None of the
files has graph inputs unless the note says so, so a file that loads can be run as it is.
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

FILES = {}


def case(verdict, note):
    """Registers a maker: its name is the file's, its result the file's content."""

    def register(make):
        FILES[make.__name__.replace("_", "-")] = (verdict, note, make)
        return make

    return register


def value(name, kind=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, outputs, inputs=(), initializers=(), functions=(), opset=17, **options):
    graph = helper.make_graph(list(nodes), "hostile", list(inputs), list(outputs), list(initializers))
    imports = [helper.make_opsetid("", opset), *options.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=options.pop("ir", 8), functions=list(functions),
                             **options)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def raw_tensor(name, kind, dims, data=b""):
    return TensorProto(name=name, data_type=kind, dims=dims, raw_data=data)


def plain():
    """A healthy model to damage."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    return model(nodes, [value("y", shape=[2, 4])],
                 initializers=[constant("x", np.ones((2, 3), np.float32)), constant("w", weight)])


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, content):
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


# The bytes themselves.

@case("refuse", "no bytes at all")
def empty():
    return b""


@case("refuse", "text, not protobuf")
def text():
    return b"{\"model\": \"not an ONNX file\"}\n" * 8


@case("refuse", "random bytes")
def noise():
    return np.random.default_rng(0).bytes(4096)


@case("refuse", "cut in the middle of the graph")
def cut_middle():
    content = plain().SerializeToString()
    return content[: len(content) // 2]


@case("refuse", "the last byte is missing")
def cut_last():
    return plain().SerializeToString()[:-1]


@case("refuse", "a field says it is longer than the file")
def length_past_end():
    return field(8, field(2, varint(17)))[:-1] + varint(7 << 3 | 2) + varint(1 << 60) + b"abc"


@case("refuse", "a varint of more than ten bytes")
def long_varint():
    return b"\x08" + b"\xff" * 30 + b"\x01"


@case("refuse", "wire type 3, an unclosed group")
def open_group():
    return plain().SerializeToString() + varint(99 << 3 | 3) + b"\x08\x01"


@case("load", "fields that this version does not know are skipped")
def unknown_fields():
    return plain().SerializeToString() + field(900, b"later") + varint(901 << 3) + varint(5)


@case("refuse", "If bodies nested two thousand deep")
def deep_subgraphs():
    # Written by hand: protobuf libraries refuse to write this.
    output = field(12, field(1, b"y"))
    body = field(1, field(2, b"y") + field(4, b"Identity") + field(1, b"c")) + output
    for _ in range(2000):
        branches = b"".join(field(5, field(1, name) + field(6, content) + varint(20 << 3) + varint(5))
                            for name, content in ((b"then_branch", body), (b"else_branch", output)))
        body = field(1, field(1, b"c") + field(2, b"y") + field(4, b"If") + branches) + output
    initializer = field(5, constant("c", True).SerializeToString())
    return varint(1 << 3) + varint(8) + field(7, body + initializer) + field(8, varint(2 << 3) + varint(17))


@case("refuse", "a type nested two thousand deep: sequence of sequence of ...")
def deep_type():
    kind = field(1, varint(1 << 3) + varint(1))
    for _ in range(2000):
        kind = field(4, field(1, kind))
    graph = field(11, field(1, b"x") + field(2, kind)) + field(12, field(1, b"x") + field(2, kind))
    return varint(1 << 3) + varint(8) + field(7, graph) + field(8, varint(2 << 3) + varint(17))


# The model as a whole.

@case("refuse", "no graph")
def no_graph():
    return onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])


@case("refuse", "no opset is imported")
def no_opset():
    damaged = plain()
    del damaged.opset_import[:]
    return damaged


@case("refuse", "an opset from the far future")
def future_opset():
    damaged = plain()
    damaged.opset_import[0].version = 9_999_999
    return damaged


@case("refuse", "a negative opset version")
def negative_opset():
    damaged = plain()
    damaged.opset_import[0].version = -3
    return damaged


@case("refuse", "an operator that does not exist")
def unknown_op():
    return model([helper.make_node("Frobnicate", [], ["y"])], [value("y")])


@case("refuse", "an operator of a domain that is not imported")
def unknown_domain():
    return model([helper.make_node("Relu", ["x"], ["y"], domain="org.nowhere")], [value("y")],
                 initializers=[constant("x", np.float32([1.0]))])


@case("refuse", "names that are not UTF-8")
def bad_utf8():
    return plain().SerializeToString().replace(b"MatMul", b"Ma\xff\xfeul")


# Edges of the graph.

@case("refuse", "two nodes feed each other")
def cycle():
    nodes = [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return model(nodes, [value("a", shape=[1])])


@case("refuse", "a node reads its own output")
def own_output():
    return model([helper.make_node("Add", ["y", "x"], ["y"])], [value("y", shape=[1])],
                 initializers=[constant("x", np.float32([1.0]))])


@case("refuse", "an input that nothing makes")
def undefined_input():
    return model([helper.make_node("Relu", ["nowhere"], ["y"])], [value("y", shape=[1])])


@case("refuse", "a graph output that nothing makes")
def undefined_output():
    return model([helper.make_node("Relu", ["x"], ["y"])], [value("z", shape=[1])],
                 initializers=[constant("x", np.float32([1.0]))])


@case("refuse", "two nodes make the same name")
def made_twice():
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    return model(nodes, [value("y", shape=[1])], initializers=[constant("x", np.float32([1.0]))])


@case("refuse", "fewer inputs than the operator needs")
def too_few_inputs():
    return model([helper.make_node("Conv", ["x"], ["y"])], [value("y")],
                 initializers=[constant("x", np.ones((1, 1, 4, 4), np.float32))])


# Functions.

def function(name, nodes, domain="local"):
    return helper.make_function(domain, name, ["x"], ["y"], nodes,
                                [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)])


LOCAL = {"imports": [helper.make_opsetid("local", 1)], "opset": 17}


def call(name, source="x", target="y"):
    return helper.make_node(name, [source], [target], domain="local")


def caller(name, functions):
    return model([call(name)], [value("y", shape=[1])], initializers=[constant("x", np.float32([1.0]))],
                 functions=functions, **LOCAL)


@case("refuse", "a function that calls itself")
def recursive_function():
    return caller("f", [function("f", [call("f")])])


@case("refuse", "two functions that call each other")
def mutual_functions():
    return caller("f", [function("f", [call("g")]), function("g", [call("f")])])


@case("refuse", "forty functions that each call the next twice: 2^40 nodes when inlined")
def function_bomb():
    functions = [function(f"f{i}", [call(f"f{i + 1}", "x", "h"), call(f"f{i + 1}", "h", "y")]) for i in range(40)]
    functions.append(function("f40", [helper.make_node("Neg", ["x"], ["y"])]))
    return caller("f0", functions)


@case("refuse", "a chain of five hundred functions whose last calls one that is not there")
def function_chain():
    functions = [function(f"f{i}", [call(f"f{i + 1}")]) for i in range(500)]
    functions.append(function("f500", [call("nowhere")]))
    return caller("f0", functions)


# Tensors.

def holder(tensor, node="Identity"):
    return model([helper.make_node(node, [tensor.name], ["y"])], [value("y", tensor.data_type)],
                 initializers=[tensor])


@case("refuse", "dims whose product is 2^80, no data")
def huge_dims():
    return holder(raw_tensor("w", FLOAT, [1 << 40, 1 << 40]))


@case("refuse", "dims whose product overflows to zero in 64 bits")
def wrapping_dims():
    return holder(raw_tensor("w", FLOAT, [1 << 32, 1 << 32]))


@case("refuse", "a dim of 2^63 - 1")
def largest_dim():
    return holder(raw_tensor("w", FLOAT, [(1 << 63) - 1]))


@case("refuse", "a negative dim")
def negative_dim():
    return holder(raw_tensor("w", FLOAT, [-1, 3], b"\0" * 12))


@case("refuse", "fewer bytes than the dims need")
def short_data():
    return holder(raw_tensor("w", FLOAT, [4], b"\0" * 13))


@case("refuse", "more bytes than the dims need")
def long_data():
    return holder(raw_tensor("w", FLOAT, [4], b"\0" * 32))


@case("refuse", "fewer typed values than the dims need")
def short_float_data():
    return holder(TensorProto(name="w", data_type=FLOAT, dims=[8], float_data=[1.0, 2.0]))


@case("refuse", "an element type that does not exist")
def unknown_type():
    return holder(raw_tensor("w", 99, [4], b"\0" * 16))


@case("refuse", "two thousand dims")
def many_dims():
    return holder(raw_tensor("w", FLOAT, [1] * 2000, b"\0" * 4))


@case("refuse", "sparse indices outside the dense dims")
def sparse_outside():
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(constant("w", np.float32([1.0, 2.0])))
    sparse.indices.CopyFrom(constant("", np.int64([1, 400])))
    graph = plain()
    del graph.graph.node[:], graph.graph.initializer[:]
    graph.graph.node.append(helper.make_node("Identity", ["w"], ["y"]))
    graph.graph.sparse_initializer.append(sparse)
    return graph


# Data in other files.

def external(**entries):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=text))
    return holder(tensor)


@case("refuse", "the data file is not there")
def external_missing():
    return external(location="not-here.bin", offset="0", length="16")


@case("refuse", "a path that leaves the model's folder")
def external_parent():
    return external(location="../models/external/second.bin", offset="0", length="16")


@case("refuse", "a path that leaves the folder after entering another")
def external_sideways():
    return external(location="a/../../models/external/second.bin", offset="0", length="16")


@case("refuse", "an absolute path")
def external_absolute():
    return external(location="/etc/hostname", offset="0", length="16")


@case("refuse", "a device that never ends")
def external_device():
    return external(location="/dev/zero", offset="0", length="16")


@case("refuse", "a path with a zero byte")
def external_zero_byte():
    return external(location="data.bin\0.txt", offset="0", length="16")


@case("refuse", "no location at all")
def external_nowhere():
    return external(offset="0", length="16")


@case("refuse", "an offset behind the end of the file")
def external_offset():
    return external(location="expected.tsv", offset="1000000000", length="16")


@case("refuse", "an offset and length whose sum overflows")
def external_overflow():
    return external(location="expected.tsv", offset="18446744073709551615", length="16")


@case("refuse", "a negative offset")
def external_negative():
    return external(location="expected.tsv", offset="-16", length="16")


@case("refuse", "an offset that is not a number")
def external_words():
    return external(location="expected.tsv", offset="zero", length="16")


@case("refuse", "a length that does not fit the dims")
def external_length():
    return external(location="expected.tsv", offset="0", length="12")


@case("refuse", "the location is the folder itself")
def external_folder():
    return external(location=".", offset="0", length="16")


# Sizes that only show when the graph is worked out.

@case("refuse", "a vector doubled sixty times by Concat")
def doubling():
    nodes = [helper.make_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(60)]
    return model(nodes, [value("v60")], initializers=[constant("v0", np.float32([1.0]))])


def sized(kind, *arrays, **attributes):
    tensors = [constant(f"i{number}", array) for number, array in enumerate(arrays)]
    return model([helper.make_node(kind, [tensor.name for tensor in tensors], ["y"], **attributes)], [value("y")],
                 initializers=tensors)


@case("refuse", "ConstantOfShape with 2^50 elements")
def huge_constant_of_shape():
    return sized("ConstantOfShape", np.int64([1 << 25, 1 << 25]))


@case("refuse", "ConstantOfShape with a negative dim")
def negative_constant_of_shape():
    return sized("ConstantOfShape", np.int64([-5]))


@case("refuse", "Expand to 2^60 elements")
def huge_expand():
    return sized("Expand", np.float32([1.0]), np.int64([1 << 30, 1 << 30]))


@case("refuse", "Tile by 2^60")
def huge_tile():
    return sized("Tile", np.float32([1.0]), np.int64([1 << 60]))


@case("refuse", "Range of 10^15 elements")
def huge_range():
    return sized("Range", np.int64(0), np.int64(10**15), np.int64(1))


@case("refuse", "Range with a step of zero")
def zero_step_range():
    return sized("Range", np.int64(0), np.int64(10), np.int64(0))


@case("refuse", "Pad by 2^50 on each side")
def huge_pad():
    return sized("Pad", np.ones(3, np.float32), np.int64([1 << 50, 1 << 50]))


@case("refuse", "OneHot of depth 2^50")
def huge_one_hot():
    return sized("OneHot", np.int64([1]), np.int64(1 << 50), np.float32([0.0, 1.0]))


@case("refuse", "Resize by a factor of 10^30")
def huge_resize():
    return sized("Resize", np.ones((1, 1, 2, 2), np.float32), np.zeros(0, np.float32),
                 np.float32([1, 1, 1e30, 1e30]))


@case("refuse", "Resize by a factor that is not a number")
def nan_resize():
    return sized("Resize", np.ones((1, 1, 2, 2), np.float32), np.zeros(0, np.float32),
                 np.float32([1, 1, np.nan, 1]))


# Types, shapes and attributes that do not fit.

@case("refuse", "Add of a float and an integer tensor")
def mixed_types():
    return sized("Add", np.float32([1.0]), np.int64([1]))


@case("refuse", "Add of shapes that do not broadcast")
def no_broadcast():
    return sized("Add", np.ones(3, np.float32), np.ones(4, np.float32))


@case("refuse", "MatMul of dims that differ")
def matmul_dims():
    return sized("MatMul", np.ones((2, 3), np.float32), np.ones((4, 5), np.float32))


@case("refuse", "Reshape to another number of elements")
def bad_reshape():
    return sized("Reshape", np.ones(6, np.float32), np.int64([4, 2]))


@case("refuse", "Reshape with two open dims")
def open_reshape():
    return sized("Reshape", np.ones(6, np.float32), np.int64([-1, -1]))


@case("refuse", "Transpose with a repeated axis")
def bad_permutation():
    return sized("Transpose", np.ones((2, 3), np.float32), perm=[0, 0])


@case("refuse", "Concat along an axis that is not there")
def bad_axis():
    return sized("Concat", np.ones(2, np.float32), np.ones(2, np.float32), axis=7)


@case("refuse", "Gather with an index outside")
def gather_outside():
    return sized("Gather", np.ones(3, np.float32), np.int64([2, 3]))


@case("refuse", "GatherElements with an index far below zero")
def gather_below():
    return sized("GatherElements", np.ones(3, np.float32), np.int64([-(1 << 62)]))


@case("refuse", "ScatterND with an index outside")
def scatter_outside():
    return sized("ScatterND", np.ones(3, np.float32), np.int64([[1 << 40]]), np.ones(1, np.float32))


@case("refuse", "Split into parts that do not add up")
def bad_split():
    tensors = [constant("x", np.ones(5, np.float32)), constant("parts", np.int64([2, 2]))]
    return model([helper.make_node("Split", ["x", "parts"], ["y", "z"])], [value("y")], initializers=tensors)


@case("refuse", "Conv with a group that does not divide the channels")
def bad_group():
    return sized("Conv", np.ones((1, 3, 4, 4), np.float32), np.ones((4, 1, 3, 3), np.float32), group=2)


@case("refuse", "Conv with group 0")
def zero_group():
    return sized("Conv", np.ones((1, 3, 4, 4), np.float32), np.ones((4, 1, 3, 3), np.float32), group=0)


@case("refuse", "Conv with strides of zero")
def zero_stride():
    return sized("Conv", np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32), strides=[0, 0])


@case("refuse", "Conv with a window larger than the picture")
def huge_window():
    return sized("Conv", np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 9, 9), np.float32))


@case("refuse", "MaxPool with pads of 2^62")
def huge_pads():
    return sized("MaxPool", np.ones((1, 1, 4, 4), np.float32), kernel_shape=[2, 2],
                 pads=[1 << 62, 1 << 62, 1 << 62, 1 << 62])


@case("refuse", "an attribute of the wrong type")
def attribute_type():
    return sized("Concat", np.ones(2, np.float32), np.ones(2, np.float32), axis="first")


@case("refuse", "a required attribute is missing")
def attribute_missing():
    return sized("Concat", np.ones(2, np.float32), np.ones(2, np.float32))


@case("refuse", "Cast to a type that does not exist")
def bad_cast():
    return sized("Cast", np.ones(2, np.float32), to=77)


@case("refuse", "Einsum with an equation that is not one")
def bad_einsum():
    return sized("Einsum", np.ones((2, 2), np.float32), equation="ij->->k(((")


@case("refuse", "LSTM whose hidden size does not fit its weights")
def bad_lstm():
    return sized("LSTM", np.ones((2, 1, 3), np.float32), np.ones((1, 16, 3), np.float32),
                 np.ones((1, 16, 4), np.float32), hidden_size=1 << 40)


@case("refuse", "If without branches")
def empty_if():
    return sized("If", np.array(True))


@case("refuse", "Loop whose body has other outputs than it carries")
def bad_loop():
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "body",
                             [value("i", INT64, []), value("c", TensorProto.BOOL, [])],
                             [value("d", TensorProto.BOOL, [])])
    tensors = [constant("n", np.int64(3)), constant("c0", np.array(True)), constant("x", np.float32([1.0]))]
    return model([helper.make_node("Loop", ["n", "c0", "x"], ["y"], body=body)], [value("y")], initializers=tensors)


@case("load", "a graph output without a declared shape")
def undeclared_shape():
    return model([helper.make_node("Relu", ["x"], ["y"])], [value("y")],
                 initializers=[constant("x", np.float32([1.0, -1.0]))])


@case("either", "a declared output shape that contradicts what is computed")
def contradicting_shape():
    return model([helper.make_node("Relu", ["x"], ["y"])], [value("y", shape=[7])],
                 initializers=[constant("x", np.float32([1.0, -1.0]))])


@case("load", "a dim name that looks like a path or a format string; takes an input x of [3]")
def odd_names():
    return model([helper.make_node("Relu", ["x"], ["../%s%n"], name="{}")], [value("../%s%n", shape=["../../%d"])],
                 inputs=[value("x", shape=["../../%d"])])


def main():
    for old in HERE.glob("*.onnx"):
        old.unlink()
    rows = ["file\tverdict\twhat\n"]
    for name, (verdict, note, make) in sorted(FILES.items()):
        content = make()
        if not isinstance(content, bytes):
            content = content.SerializeToString()
        (HERE / f"{name}.onnx").write_bytes(content)
        rows.append(f"{name}.onnx\t{verdict}\t{note}\n")
    (HERE / "expected.tsv").write_text("".join(rows))
    print(f"{len(FILES)} files")


if __name__ == "__main__":
    main()
