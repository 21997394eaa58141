//! ONNX's messages, with the field numbers of its published schema. Fields that nothing here uses are skipped.

use crate::error::OnnxError;
use crate::wire::{Field, Merge, Message, Reader, Span, push_message};

macro_rules! messages {
    ($($(#[doc = $doc:literal])* $name:ident { $($number:literal $field:ident : $kind:tt $ty:ty, $fdoc:literal;)* })*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $name { $(#[doc = $fdoc] pub $field: messages!(@type $kind $ty),)* }
        impl Message for $name {
            fn field(&mut self, number: u32, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
                match number {
                    $($number => messages!(@read $kind self.$field, value, reader),)*
                    _ => Ok(()),
                }
            }
        }
    )* };
    (@type value $ty:ty) => { $ty };
    (@type list $ty:ty) => { Vec<$ty> };
    (@read value $place:expr, $value:ident, $reader:ident) => { Merge::merge(&mut $place, $value, $reader) };
    (@read list $place:expr, $value:ident, $reader:ident) => { push_message(&mut $place, $value, $reader) };
}

messages! {
    /// A model file.
    ModelProto {
        1 ir_version: value i64, "Version of the file format.";
        2 producer_name: value String, "The tool that wrote it.";
        3 producer_version: value String, "That tool's version.";
        5 model_version: value i64, "The model's own version.";
        6 doc_string: value String, "Description.";
        7 graph: value Option<Box<GraphProto>>, "The graph that runs.";
        8 opset_import: list OperatorSetId, "Operator sets used.";
        14 metadata_props: list StringEntry, "Free metadata.";
        25 functions: list FunctionProto, "Functions that nodes may call.";
    }
    /// An operator set of one domain.
    OperatorSetId {
        1 domain: value String, "Empty for the standard domain.";
        2 version: value i64, "Version.";
    }
    /// A key with a value.
    StringEntry {
        1 key: value String, "Key.";
        2 value: value String, "Value.";
    }
    /// A graph, of a model or an attribute.
    GraphProto {
        1 node: list NodeProto, "Operations.";
        2 name: value String, "Name.";
        5 initializer: list TensorProto, "Constant values.";
        11 input: list ValueInfo, "Parameters.";
        12 output: list ValueInfo, "Results.";
        13 value_info: list ValueInfo, "Types of inner values, as the exporter saw them.";
        15 sparse_initializer: list SparseTensorProto, "Constant values in sparse form.";
    }
    /// One operation.
    NodeProto {
        1 input: value Vec<String>, "Operand names; empty where left out.";
        2 output: value Vec<String>, "Result names; empty where unused.";
        3 name: value String, "Name, for people.";
        4 op_type: value String, "Operator name.";
        5 attribute: list AttributeProto, "Attributes.";
        7 domain: value String, "Operator domain; empty for the standard one.";
        8 overload: value String, "Which function of that name.";
    }
    /// One attribute of a node.
    AttributeProto {
        1 name: value String, "Name.";
        2 f: value f32, "A number.";
        3 i: value i64, "An integer.";
        4 s: value Vec<u8>, "A string.";
        5 t: value Option<Box<TensorProto>>, "A tensor.";
        6 g: value Option<Box<GraphProto>>, "A graph.";
        7 floats: value Vec<f32>, "Numbers.";
        8 ints: value Vec<i64>, "Integers.";
        9 strings: value Vec<Vec<u8>>, "Strings.";
        10 tensors: list TensorProto, "Tensors.";
        11 graphs: list GraphProto, "Graphs.";
        14 tp: value Option<Box<TypeProto>>, "A type.";
        20 kind: value i32, "Which of the others counts.";
        21 ref_attr_name: value String, "In a function: the attribute of the call that this one copies.";
        22 sparse_tensor: value Option<Box<SparseTensorProto>>, "A sparse tensor.";
    }
    /// The name and type of a value.
    ValueInfo {
        1 name: value String, "Name.";
        2 ty: value Option<Box<TypeProto>>, "Type.";
    }
    /// Constant elements.
    TensorProto {
        1 dims: value Vec<i64>, "Dims, outermost first.";
        2 data_type: value i32, "Element type number.";
        4 float_data: value Vec<f32>, "Elements of float and complex64.";
        5 int32_data: value Vec<i32>, "Elements of types up to 32 bits, or their bits.";
        6 string_data: value Vec<Vec<u8>>, "Elements of string tensors.";
        7 int64_data: value Vec<i64>, "Elements of int64.";
        8 name: value String, "Name.";
        9 raw_data: value Option<Span>, "All elements as bytes.";
        10 double_data: value Vec<f64>, "Elements of double and complex128.";
        11 uint64_data: value Vec<u64>, "Elements of uint64 and uint32.";
        13 external_data: list StringEntry, "Where the bytes are, if in another file.";
        14 data_location: value i32, "1 if in another file.";
    }
    /// Constant elements in sparse form.
    SparseTensorProto {
        1 values: value Option<Box<TensorProto>>, "The elements that are not zero.";
        2 indices: value Option<Box<TensorProto>>, "Where they are: linear, or one row of indices each.";
        3 dims: value Vec<i64>, "Dims.";
    }
    /// The type of a value.
    TypeProto {
        1 tensor: value Option<Box<TensorType>>, "A tensor.";
        4 sequence: value Option<Box<ElementType>>, "A sequence.";
        5 map: value Option<Box<MapType>>, "A map.";
        8 sparse_tensor: value Option<Box<TensorType>>, "A sparse tensor.";
        9 optional: value Option<Box<ElementType>>, "An optional.";
    }
    /// The type of a tensor.
    TensorType {
        1 elem_type: value i32, "Element type number.";
        2 shape: value Option<Box<ShapeProto>>, "Dims, where the rank is known.";
    }
    /// The type of a sequence's or optional's elements.
    ElementType {
        1 elem_type: value Option<Box<TypeProto>>, "Type of the elements.";
    }
    /// The type of a map.
    MapType {
        1 key_type: value i32, "Element type number of the keys.";
        2 value_type: value Option<Box<TypeProto>>, "Type of the values.";
    }
    /// Dims.
    ShapeProto {
        1 dim: list DimProto, "Dims, outermost first.";
    }
    /// One dim: a number, a name, or unknown.
    DimProto {
        1 value: value Option<i64>, "The number.";
        2 param: value String, "The name.";
    }
    /// A function that nodes call by its domain, name and overload.
    FunctionProto {
        1 name: value String, "Name.";
        4 input: value Vec<String>, "Parameter names.";
        5 output: value Vec<String>, "Result names.";
        6 attribute: value Vec<String>, "Attributes without default.";
        7 node: list NodeProto, "Operations.";
        9 opset_import: list OperatorSetId, "Operator sets used.";
        10 domain: value String, "Domain.";
        11 attribute_proto: list AttributeProto, "Attributes with defaults.";
        13 overload: value String, "Which of the functions of that name.";
    }
    /// A sequence of values, as data files hold them.
    SequenceProto {
        1 name: value String, "Name.";
        2 elem_type: value i32, "1 tensor, 3 sequence, 5 optional.";
        3 tensor_values: list TensorProto, "Tensors.";
        5 sequence_values: list SequenceProto, "Sequences.";
        7 optional_values: list OptionalProto, "Optionals.";
    }
    /// A value or nothing, as data files hold them.
    OptionalProto {
        1 name: value String, "Name.";
        2 elem_type: value i32, "0 nothing, 1 tensor, 3 sequence, 5 optional.";
        3 tensor_value: value Option<Box<TensorProto>>, "A tensor.";
        5 sequence_value: value Option<Box<SequenceProto>>, "A sequence.";
        7 optional_value: value Option<Box<OptionalProto>>, "An optional.";
    }
}

/// Values of [`AttributeProto::kind`].
pub mod kind {
    /// One float.
    pub const FLOAT: i32 = 1;
    /// One integer.
    pub const INT: i32 = 2;
    /// One string.
    pub const STRING: i32 = 3;
    /// One tensor.
    pub const TENSOR: i32 = 4;
    /// One graph.
    pub const GRAPH: i32 = 5;
    /// Floats.
    pub const FLOATS: i32 = 6;
    /// Integers.
    pub const INTS: i32 = 7;
    /// Strings.
    pub const STRINGS: i32 = 8;
}
