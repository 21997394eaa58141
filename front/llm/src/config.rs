//! The configuration.

use std::path::Path;

use serde_json::{Map, Value};
use tongtu_graph::GraphError;
use tongtu_tensor::{DType, TensorError};

/// Largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Why a configuration was not taken. Each kind has a stable code, in brackets in its message.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// The operating system refused.
    #[error("[L001] {path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What it said.
        error: std::io::Error,
    },
    /// Not JSON, or a key is missing or makes no sense.
    #[error("[L002] {0}")]
    Invalid(String),
    /// An architecture, or a use of it, that is not known.
    #[error("[L003] {0}")]
    Unsupported(String),
    /// The tensor graph refuses an operation.
    #[error("[L004] {0}")]
    Graph(#[from] GraphError),
    /// A weight too large for any machine.
    #[error("[L005] {0}")]
    Tensor(#[from] TensorError),
}

/// What tells architectures apart, beyond sizes.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// `model_type` in the configuration.
    pub name: &'static str,
    /// Whether the projections of queries, keys and values have biases.
    pub biased: bool,
    /// Whether queries and keys are normalised, head by head.
    pub normalised: bool,
    /// Whether `sliding_window` limits what is seen.
    pub window: bool,
}

/// The architectures known.
pub const FAMILIES: &[Family] = &[
    Family { name: "llama", biased: false, normalised: false, window: false },
    Family { name: "mistral", biased: false, normalised: false, window: true },
    Family { name: "qwen2", biased: true, normalised: false, window: false },
    Family { name: "qwen3", biased: false, normalised: true, window: false },
];

/// How positions turn queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rope {
    /// As they are.
    Plain,
    /// Positions divided by a factor.
    Linear(f64),
    /// Low frequencies divided by a factor, high ones kept, those between in proportion: factor, low and high limit of original
    /// length over wavelength, original length.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Fewer turns than this are slowed by the whole factor.
        low: f64,
        /// More turns than this are kept.
        high: f64,
        /// The length that the model was trained for first.
        length: f64,
    },
}

/// A decoder's sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its architecture's name.
    pub family: String,
    /// Elements of a token's vector.
    pub hidden: i64,
    /// Layers.
    pub layers: i64,
    /// Heads of queries.
    pub heads: i64,
    /// Heads of keys and values.
    pub kv_heads: i64,
    /// Elements of a head.
    pub head: i64,
    /// Elements of the feed-forward part.
    pub intermediate: i64,
    /// Tokens.
    pub vocabulary: i64,
    /// Base of the frequencies of positions.
    pub theta: f64,
    /// How positions are taken.
    pub rope: Rope,
    /// Added under the root of the norms.
    pub epsilon: f64,
    /// Type of weights and values.
    pub dtype: DType,
    /// Whether the last projection is the table of tokens.
    pub tied: bool,
    /// Whether the projections of queries, keys and values have biases.
    pub biased: bool,
    /// Whether the last projection of attention has a bias.
    pub biased_output: bool,
    /// Whether queries and keys are normalised.
    pub normalised: bool,
    /// How many positions back are seen.
    pub window: Option<i64>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`LlmError`].
    pub fn read(path: impl AsRef<Path>) -> Result<Config, LlmError> {
        let path = path.as_ref();
        let io = |error| LlmError::Io { path: path.display().to_string(), error };
        if std::fs::metadata(path).map_err(io)?.len() > LARGEST {
            return Err(LlmError::Invalid(format!("{} is too large to be a configuration", path.display())));
        }
        Config::parse(&std::fs::read_to_string(path).map_err(io)?)
    }

    /// Reads text.
    ///
    /// # Errors
    /// See [`LlmError`].
    pub fn parse(text: &str) -> Result<Config, LlmError> {
        let value: Value = serde_json::from_str(text).map_err(|e| LlmError::Invalid(e.to_string()))?;
        let Value::Object(map) = value else {
            return Err(LlmError::Invalid("a configuration is a JSON object".to_string()));
        };
        let keys = Keys(&map);
        let scaling = scaling(&map)?;
        let name = keys.text("model_type")?.unwrap_or_default();
        let known = || FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
        let family = FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| {
            LlmError::Unsupported(format!("model_type '{name}' is not known; known are {}", known()))
        })?;
        if map.get("quantization_config").is_some_and(|q| !q.is_null()) {
            return Err(LlmError::Unsupported("quantization_config: only unquantised checkpoints".into()));
        }
        let activation = keys.text("hidden_act")?.unwrap_or("silu");
        if activation != "silu" {
            return Err(LlmError::Unsupported(format!("hidden_act '{activation}': only silu")));
        }
        if keys.flag("mlp_bias")?.unwrap_or(false) {
            return Err(LlmError::Unsupported("mlp_bias: only projections without biases".into()));
        }
        let (hidden, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
        let kv_heads = keys.size_or("num_key_value_heads", heads)?;
        let head = keys.size_or("head_dim", (hidden / heads).max(1))?;
        if heads % kv_heads != 0 || head % 2 != 0 {
            let what = format!("{heads} heads of {head} elements with {kv_heads} heads of keys");
            return Err(LlmError::Invalid(what));
        }
        let dtype = keys.text("torch_dtype")?.or(keys.text("dtype")?).unwrap_or("bfloat16");
        let dtype = match dtype {
            "bfloat16" => DType::BF16,
            "float16" => DType::F16,
            "float32" => DType::F32,
            other => return Err(LlmError::Unsupported(format!("torch_dtype '{other}'"))),
        };
        let bias = keys.flag("attention_bias")?.unwrap_or(false);
        let window = match family.window || keys.flag("use_sliding_window")?.unwrap_or(false) {
            true => keys.number("sliding_window")?.map(|w| w as i64),
            false => None,
        };
        Ok(Config {
            family: family.name.to_string(),
            hidden,
            layers: keys.size("num_hidden_layers")?,
            heads,
            kv_heads,
            head,
            intermediate: keys.size("intermediate_size")?,
            vocabulary: keys.size("vocab_size")?,
            theta: theta(&keys, scaling)?,
            rope: rope(scaling)?,
            epsilon: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            dtype,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            biased: family.biased || bias,
            biased_output: bias,
            normalised: family.normalised,
            window,
        })
    }
}

/// What is said of rotary embeddings: `rope_parameters` since version 5 of transformers, `rope_scaling` before.
fn scaling(map: &Map<String, Value>) -> Result<Option<&Map<String, Value>>, LlmError> {
    for key in ["rope_parameters", "rope_scaling"] {
        match map.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(all)) if all.values().any(Value::is_object) => {
                return Err(LlmError::Unsupported(format!("{key} that differ between layers")));
            }
            Some(Value::Object(all)) => return Ok(Some(all)),
            Some(_) => return Err(LlmError::Invalid(format!("{key} is not an object"))),
        }
    }
    Ok(None)
}

/// The base of the angles: beside the scaling since version 5 of transformers, a key of its own before.
fn theta(keys: &Keys<'_>, scaling: Option<&Map<String, Value>>) -> Result<f64, LlmError> {
    let inner = scaling.map(|s| Keys(s).number("rope_theta")).transpose()?.flatten();
    Ok(inner.or(keys.number("rope_theta")?).unwrap_or(10000.0))
}

fn rope(scaling: Option<&Map<String, Value>>) -> Result<Rope, LlmError> {
    let Some(scaling) = scaling else { return Ok(Rope::Plain) };
    let keys = Keys(scaling);
    let kind = keys.text("rope_type")?.or(keys.text("type")?).unwrap_or("default");
    let need = |name: &str| {
        let missing = || LlmError::Invalid(format!("the scaling of rotary embeddings has no {name}"));
        keys.number(name)?.filter(|n| *n > 0.0).ok_or_else(missing)
    };
    match kind {
        "default" => Ok(Rope::Plain),
        "linear" => Ok(Rope::Linear(need("factor")?)),
        "llama3" => Ok(Rope::Llama3 {
            factor: need("factor")?,
            low: need("low_freq_factor")?,
            high: need("high_freq_factor")?,
            length: need("original_max_position_embeddings")?,
        }),
        other => Err(LlmError::Unsupported(format!("rotary embeddings of type '{other}'"))),
    }
}

/// Typed access to keys.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LlmError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match read(v) {
                Some(x) => Ok(Some(x)),
                None => Err(LlmError::Invalid(format!("{key} is not {what}"))),
            },
        }
    }
    fn text(&self, key: &str) -> Result<Option<&'a str>, LlmError> {
        self.get(key, "text", Value::as_str)
    }
    fn flag(&self, key: &str) -> Result<Option<bool>, LlmError> {
        self.get(key, "true or false", Value::as_bool)
    }
    fn number(&self, key: &str) -> Result<Option<f64>, LlmError> {
        self.get(key, "a number", Value::as_f64)
    }
    fn size_if(&self, key: &str) -> Result<Option<i64>, LlmError> {
        self.get(key, "a size", |v| v.as_i64().filter(|n| (1..1 << 24).contains(n)))
    }
    fn size(&self, key: &str) -> Result<i64, LlmError> {
        self.size_if(key)?.ok_or_else(|| LlmError::Invalid(format!("there is no {key}")))
    }
    fn size_or(&self, key: &str, other: i64) -> Result<i64, LlmError> {
        Ok(self.size_if(key)?.unwrap_or(other))
    }
}
