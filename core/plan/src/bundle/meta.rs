//! The metadata of a bundle: forms of graph types that serde can write, with tensors replaced by numbers of a table.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tongtu_graph::graph::Value;
use tongtu_graph::op::AttrValue;
use tongtu_graph::{Graph, Loc, Node, Op, Type, ValueId};
use tongtu_tensor::dim::{Dim, Sym};
use tongtu_tensor::{DType, Tensor};

/// A value type.
#[derive(Serialize, Deserialize)]
pub(crate) enum MetaType {
    #[serde(rename = "t")]
    Tensor(DType, Vec<Dim>),
    #[serde(rename = "s")]
    Strings(Vec<Dim>),
    #[serde(rename = "q")]
    Sequence(Box<MetaType>),
    #[serde(rename = "o")]
    Optional(Box<MetaType>),
    #[serde(rename = "a")]
    Any,
}

impl From<&Type> for MetaType {
    fn from(ty: &Type) -> MetaType {
        match ty {
            Type::Tensor { dtype, dims } => MetaType::Tensor(*dtype, dims.clone()),
            Type::Strings { dims } => MetaType::Strings(dims.clone()),
            Type::Sequence(t) => MetaType::Sequence(Box::new(t.as_ref().into())),
            Type::Optional(t) => MetaType::Optional(Box::new(t.as_ref().into())),
            Type::Any => MetaType::Any,
        }
    }
}

impl From<MetaType> for Type {
    fn from(ty: MetaType) -> Type {
        match ty {
            MetaType::Tensor(dtype, dims) => Type::Tensor { dtype, dims },
            MetaType::Strings(dims) => Type::Strings { dims },
            MetaType::Sequence(t) => Type::Sequence(Box::new((*t).into())),
            MetaType::Optional(t) => Type::Optional(Box::new((*t).into())),
            MetaType::Any => Type::Any,
        }
    }
}

/// Types within plan values.
pub(crate) mod ty {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(ty: &Type, s: S) -> Result<S::Ok, S::Error> {
        MetaType::from(ty).serialize(s)
    }
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Type, D::Error> {
        MetaType::deserialize(d).map(Type::from)
    }
}

/// Locations.
pub(crate) mod loc {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(loc: &Loc, s: S) -> Result<S::Ok, S::Error> {
        loc.0.as_deref().serialize(s)
    }
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Loc, D::Error> {
        Option::<String>::deserialize(d).map(|s| Loc(s.map(Arc::from)))
    }
}

/// An attribute.
#[derive(Serialize, Deserialize)]
pub(crate) enum MetaAttr {
    #[serde(rename = "i")]
    Int(i64),
    #[serde(rename = "b")]
    Bool(bool),
    /// By its bits, so that every number survives.
    #[serde(rename = "f")]
    Float(u64),
    #[serde(rename = "s")]
    Str(String),
    #[serde(rename = "e")]
    DType(DType),
    #[serde(rename = "d")]
    Dim(Dim),
    #[serde(rename = "y")]
    Sym(Sym),
    #[serde(rename = "c")]
    Tensor(usize),
    #[serde(rename = "t")]
    Type(MetaType),
    #[serde(rename = "g")]
    Graph(Box<MetaGraph>),
    #[serde(rename = "l")]
    List(Vec<MetaAttr>),
}

/// Attributes by name.
pub(crate) type MetaAttrs = Vec<(String, MetaAttr)>;

#[derive(Serialize, Deserialize)]
pub(crate) struct MetaNode {
    op: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attrs: MetaAttrs,
    ins: Vec<u32>,
    outs: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loc: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct MetaGraph {
    name: String,
    values: Vec<(MetaType, Option<String>)>,
    inputs: Vec<u32>,
    outputs: Vec<u32>,
    nodes: Vec<MetaNode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    state: Vec<(usize, usize)>,
}

/// Gives the table number of a tensor.
pub(crate) type Put<'a> = dyn FnMut(&Tensor) -> usize + 'a;

impl MetaAttr {
    pub(crate) fn new(value: &AttrValue, put: &mut Put<'_>) -> MetaAttr {
        match value {
            AttrValue::Int(v) => MetaAttr::Int(*v),
            AttrValue::Bool(v) => MetaAttr::Bool(*v),
            AttrValue::Float(v) => MetaAttr::Float(v.to_bits()),
            AttrValue::Str(v) => MetaAttr::Str(v.clone()),
            AttrValue::DType(v) => MetaAttr::DType(*v),
            AttrValue::Dim(v) => MetaAttr::Dim(v.clone()),
            AttrValue::Sym(v) => MetaAttr::Sym(*v),
            AttrValue::Tensor(v) => MetaAttr::Tensor(put(v)),
            AttrValue::Type(v) => MetaAttr::Type(v.into()),
            AttrValue::Graph(v) => MetaAttr::Graph(Box::new(MetaGraph::new(v, put))),
            AttrValue::List(v) => MetaAttr::List(v.iter().map(|a| MetaAttr::new(a, put)).collect()),
        }
    }

    pub(crate) fn build(self, tensors: &[Tensor]) -> Result<AttrValue, String> {
        Ok(match self {
            MetaAttr::Int(v) => AttrValue::Int(v),
            MetaAttr::Bool(v) => AttrValue::Bool(v),
            MetaAttr::Float(v) => AttrValue::Float(f64::from_bits(v)),
            MetaAttr::Str(v) => AttrValue::Str(v),
            MetaAttr::DType(v) => AttrValue::DType(v),
            MetaAttr::Dim(v) => AttrValue::Dim(v),
            MetaAttr::Sym(v) => AttrValue::Sym(v),
            MetaAttr::Tensor(i) => {
                AttrValue::Tensor(tensors.get(i).ok_or_else(|| format!("there is no tensor {i}"))?.clone())
            }
            MetaAttr::Type(v) => AttrValue::Type(v.into()),
            MetaAttr::Graph(v) => AttrValue::Graph(Arc::new(v.build(tensors)?)),
            MetaAttr::List(v) => {
                AttrValue::List(v.into_iter().map(|a| a.build(tensors)).collect::<Result<_, _>>()?)
            }
        })
    }
}

/// A list of attributes in its written form.
pub(crate) fn attrs<'a>(
    list: impl IntoIterator<Item = (&'a str, &'a AttrValue)>,
    put: &mut Put<'_>,
) -> MetaAttrs {
    list.into_iter().map(|(n, v)| (n.to_string(), MetaAttr::new(v, put))).collect()
}

/// A list of attributes from its written form.
pub(crate) fn build_attrs(list: MetaAttrs, tensors: &[Tensor]) -> Result<Vec<(String, AttrValue)>, String> {
    list.into_iter().map(|(n, v)| Ok((n, v.build(tensors)?))).collect()
}

impl MetaGraph {
    pub(crate) fn new(graph: &Graph, put: &mut Put<'_>) -> MetaGraph {
        let ids = |v: &[ValueId]| v.iter().map(|v| v.0).collect();
        MetaGraph {
            name: graph.name.clone(),
            values: graph
                .values
                .iter()
                .map(|v| ((&v.ty).into(), v.name.as_deref().map(str::to_string)))
                .collect(),
            inputs: ids(&graph.inputs),
            outputs: ids(&graph.outputs),
            nodes: graph
                .nodes
                .iter()
                .map(|n| {
                    let list = n.op.attrs();
                    MetaNode {
                        op: n.op.name().to_string(),
                        attrs: attrs(list.iter().map(|(n, v)| (*n, v)), put),
                        ins: ids(&n.inputs),
                        outs: ids(&n.outputs),
                        loc: n.loc.0.as_deref().map(str::to_string),
                    }
                })
                .collect(),
            state: graph.state.clone(),
        }
    }

    pub(crate) fn build(self, tensors: &[Tensor]) -> Result<Graph, String> {
        let count = self.values.len() as u64;
        let ids = |v: Vec<u32>| -> Result<Vec<ValueId>, String> {
            match v.iter().find(|&&v| u64::from(v) >= count) {
                Some(v) => Err(format!("graph '{}' has no value {v}", self.name)),
                None => Ok(v.into_iter().map(ValueId).collect()),
            }
        };
        let nodes = self.nodes.into_iter().map(|n| {
            Ok(Node {
                op: Op::from_parts(&n.op, &build_attrs(n.attrs, tensors)?)?,
                inputs: ids(n.ins)?,
                outputs: ids(n.outs)?,
                loc: Loc(n.loc.map(Arc::from)),
            })
        });
        Ok(Graph {
            nodes: nodes.collect::<Result<_, String>>()?,
            inputs: ids(self.inputs)?,
            outputs: ids(self.outputs)?,
            values: self
                .values
                .into_iter()
                .map(|(ty, name)| Value { ty: ty.into(), name: name.map(Arc::from) })
                .collect(),
            name: self.name,
            state: self.state,
        })
    }
}
