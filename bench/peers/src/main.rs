//! Runs a model in another runtime written in Rust and prints its times as JSON, for `bench/run.py`.
//!
//! `tongtu-bench-peers tract|rten MODEL FOLDER THREADS RUNS`: FOLDER holds `inputs.json`, a list of arrays with `name`, `dtype` and
//! `shape`, and their elements in files `input_0`, `input_1`, …; the outputs are written there as `outputs.json` and `output_0`, ….

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// An array: its elements lie in a file, one after another, little-endian.
#[derive(Clone, Serialize, Deserialize)]
struct Array {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    #[serde(skip)]
    bytes: Vec<u8>,
}

impl Array {
    fn new(dtype: &str, shape: &[usize], bytes: Vec<u8>) -> Array {
        Array { name: String::new(), dtype: dtype.to_string(), shape: shape.to_vec(), bytes }
    }
    fn elements<T, const N: usize>(&self, of: fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.as_chunks().0.iter().map(|&b| of(b)).collect()
    }
}

/// A model that is ready to run.
type Run = Box<dyn FnMut(&[Array]) -> Result<Vec<Array>>>;

mod tract {
    use super::{Array, Context, Path, Result, Run, bail};
    use tract_onnx::prelude::*;

    fn tensor(a: &Array) -> Result<Tensor> {
        Ok(match a.dtype.as_str() {
            "float32" => Tensor::from_shape(&a.shape, &a.elements(f32::from_le_bytes))?,
            "int64" => Tensor::from_shape(&a.shape, &a.elements(i64::from_le_bytes))?,
            "int32" => Tensor::from_shape(&a.shape, &a.elements(i32::from_le_bytes))?,
            "uint8" => Tensor::from_shape(&a.shape, &a.bytes)?,
            "int8" => Tensor::from_shape(&a.shape, &a.elements(i8::from_le_bytes))?,
            "bool" => Tensor::from_shape(&a.shape, &a.elements(|[b]: [u8; 1]| b != 0))?,
            other => bail!("inputs of {other}"),
        })
    }

    pub fn start(path: &Path, inputs: &[Array], threads: usize) -> Result<Run> {
        if threads > 1 {
            let pool = tract_linalg::multithread::Executor::multithread(threads);
            tract_linalg::multithread::set_default_executor(pool);
        }
        let mut model = onnx().model_for_path(path)?;
        let names: Vec<String> =
            model.input_outlets()?.iter().map(|o| model.node(o.node).name.clone()).collect();
        let order: Vec<usize> = names
            .iter()
            .map(|n| inputs.iter().position(|a| a.name == *n).with_context(|| format!("no input {n}")))
            .collect::<Result<_>>()?;
        for (i, &at) in order.iter().enumerate() {
            let t = tensor(&inputs[at])?;
            model.set_input_fact(i, InferenceFact::dt_shape(t.datum_type(), t.shape()))?;
        }
        let model = model.into_optimized()?.into_runnable()?;
        Ok(Box::new(move |inputs| {
            let inputs =
                order.iter().map(|&at| Ok(tensor(&inputs[at])?.into())).collect::<Result<TVec<TValue>>>()?;
            model.run(inputs)?.iter().map(|t| array(t)).collect()
        }))
    }

    fn array(t: &Tensor) -> Result<Array> {
        let dtype = match t.datum_type().unquantized() {
            DatumType::F32 => "float32",
            DatumType::I64 => "int64",
            DatumType::I32 => "int32",
            DatumType::U8 => "uint8",
            DatumType::I8 => "int8",
            DatumType::Bool => "bool",
            other => bail!("outputs of {other:?}"),
        };
        Ok(Array::new(dtype, t.shape(), t.as_bytes().to_vec()))
    }
}

mod rten_peer {
    use super::{Array, Context, Path, Result, Run, bail};
    use rten::{Model, Value, ValueOrView};
    use rten_tensor::Tensor;
    use rten_tensor::prelude::*;

    fn value(a: &Array) -> Result<Value> {
        let narrow = |v: Vec<i64>| {
            v.into_iter().map(|n| n.clamp(i32::MIN.into(), i32::MAX.into()) as i32).collect::<Vec<i32>>()
        };
        Ok(match a.dtype.as_str() {
            "float32" => Tensor::from_data(&a.shape[..], a.elements(f32::from_le_bytes)).into(),
            // It has no 64-bit integers.
            "int64" => Tensor::from_data(&a.shape[..], narrow(a.elements(i64::from_le_bytes))).into(),
            "int32" => Tensor::from_data(&a.shape[..], a.elements(i32::from_le_bytes)).into(),
            "bool" => Tensor::from_data(&a.shape[..], a.elements(|[b]: [u8; 1]| i32::from(b))).into(),
            "uint8" => Tensor::from_data(&a.shape[..], a.bytes.clone()).into(),
            "int8" => Tensor::from_data(&a.shape[..], a.elements(i8::from_le_bytes)).into(),
            other => bail!("inputs of {other}"),
        })
    }

    pub fn start(path: &Path, inputs: &[Array]) -> Result<Run> {
        let model = Model::load_file(path)?;
        let ids = inputs
            .iter()
            .map(|a| model.find_node(&a.name).with_context(|| format!("no input {}", a.name)))
            .collect::<Result<Vec<_>>>()?;
        let outputs = model.output_ids().to_vec();
        Ok(Box::new(move |inputs| {
            let values = inputs.iter().map(value).collect::<Result<Vec<_>>>()?;
            let given = ids.iter().copied().zip(values.into_iter().map(ValueOrView::from)).collect();
            model.run(given, &outputs, None)?.into_iter().map(array).collect()
        }))
    }

    fn array(v: Value) -> Result<Array> {
        let bytes = |v: Vec<[u8; 4]>| v.concat();
        Ok(match v {
            Value::FloatTensor(t) => Array::new(
                "float32",
                t.shape(),
                bytes(t.to_vec().into_iter().map(f32::to_le_bytes).collect()),
            ),
            Value::Int32Tensor(t) => {
                Array::new("int32", t.shape(), bytes(t.to_vec().into_iter().map(i32::to_le_bytes).collect()))
            }
            Value::UInt8Tensor(t) => Array::new("uint8", t.shape(), t.to_vec()),
            Value::Int8Tensor(t) => {
                Array::new("int8", t.shape(), t.to_vec().into_iter().map(|n| n as u8).collect())
            }
            _ => bail!("outputs that are no tensors"),
        })
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [peer, model, folder, threads, runs] = &args[..] else {
        bail!("usage: tongtu-bench-peers tract|rten MODEL FOLDER THREADS RUNS");
    };
    let (model, folder, threads) = (PathBuf::from(model), PathBuf::from(folder), threads.parse()?);
    let mut inputs: Vec<Array> = serde_json::from_slice(&std::fs::read(folder.join("inputs.json"))?)?;
    for (i, a) in inputs.iter_mut().enumerate() {
        a.bytes = std::fs::read(folder.join(format!("input_{i}")))?;
    }
    let begin = Instant::now();
    let mut run = match peer.as_str() {
        "tract" => tract::start(&model, &inputs, threads)?,
        "rten" => rten_peer::start(&model, &inputs)?,
        other => bail!("'{other}' is not known"),
    };
    let outputs = run(&inputs)?;
    let first = begin.elapsed().as_secs_f64() * 1e3;
    let mut samples = Vec::new();
    for _ in 0..runs.parse()? {
        let begin = Instant::now();
        run(&inputs)?;
        samples.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    for (i, a) in outputs.iter().enumerate() {
        std::fs::write(folder.join(format!("output_{i}")), &a.bytes)?;
    }
    std::fs::write(folder.join("outputs.json"), serde_json::to_vec(&outputs)?)?;
    // SAFETY: the structure is plain numbers, for which zeros are valid, and the call only writes to it.
    let peak = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage.ru_maxrss * 1024
    };
    println!(
        "{}",
        serde_json::json!({
            "samples_ms": samples,
            "compile_ms": first,
            "cached_start_ms": first,
            "peak_rss_bytes": peak,
        })
    );
    Ok(())
}
