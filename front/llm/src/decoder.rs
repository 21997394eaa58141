//! A decoder's graph.

use tongtu_graph::composite::AttentionSpec;
use tongtu_graph::{Builder, Loc, Module, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Unary;
use tongtu_tensor::{DType, Tensor};

use crate::config::{Config, LlmError, Rope};

/// Most layers.
const MOST_LAYERS: i64 = 1000;

/// A decoder without weights: tokens `[batch, sequence]` and, for each layer, the keys and values of earlier ones
/// `[batch, kv_heads, past, head]` give the logits of the last token `[batch, vocabulary]` and, for each layer, all keys and values. With
/// `past` 0 that is the prefill, with `sequence` 1 a step.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// The graph.
    pub module: Module,
    /// Names of the inputs: `tokens`, then `past.N.key` and `past.N.value`.
    pub inputs: Vec<String>,
    /// Names of the outputs: `logits`, then `present.N.key` and `present.N.value`.
    pub outputs: Vec<String>,
    /// Elements of all weights.
    pub parameters: u64,
}

/// Builds the graph of a configuration.
///
/// # Errors
/// See [`LlmError`].
pub fn decoder(c: &Config) -> Result<Decoder, LlmError> {
    if c.layers > MOST_LAYERS {
        return Err(LlmError::Invalid(format!("{} layers are more than {MOST_LAYERS}", c.layers)));
    }
    let mut module = Module::default();
    let symbols = &mut module.symbols;
    let [batch, sequence, past] = ["batch", "sequence", "past"].map(|n| symbols.intern(n));
    symbols.set_bounds(batch, 1, None);
    symbols.set_bounds(sequence, 1, None);
    symbols.set_bounds(past, 0, None);
    let [batch, sequence, past] = [batch, sequence, past].map(Dim::sym);
    let (mut inputs, mut outputs) = (vec!["tokens".to_string()], vec!["logits".to_string()]);
    let g = &mut module.graph;
    let name = |n: &str| Some(n.into());
    let tokens = g.add_input(Type::tensor(DType::I64, [batch.clone(), sequence.clone()]), name("tokens"));
    let mut caches = Vec::new();
    for i in 0..c.layers {
        for part in ["key", "value"] {
            let dims = [batch.clone(), c.kv_heads.into(), past.clone(), c.head.into()];
            let port = format!("past.{i}.{part}");
            caches.push(g.add_input(Type::tensor(c.dtype, dims), name(&port)));
            inputs.push(port);
            outputs.push(format!("present.{i}.{part}"));
        }
    }
    let b = Builder::new(&mut module.graph, &mut module.symbols);
    let mut make = Make { b, c, batch, sequence, past, parameters: 0 };
    let results = make.model(tokens, &caches)?;
    let parameters = make.parameters;
    module.graph.outputs = results;
    Ok(Decoder { module, inputs, outputs, parameters })
}

struct Make<'a> {
    b: Builder<'a>,
    c: &'a Config,
    batch: Dim,
    sequence: Dim,
    past: Dim,
    parameters: u64,
}

type Value = Result<ValueId, LlmError>;

impl Make<'_> {
    fn at(&mut self, place: &str) {
        self.b.loc = Loc::new(place);
    }

    fn weight(&mut self, shape: &[i64]) -> Value {
        let dims: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        self.parameters += shape.iter().map(|&n| n as u64).product::<u64>();
        Ok(self.b.constant(Tensor::absent(self.c.dtype, &dims)?)?)
    }

    /// `x wᵀ + b` over the last dim, rounded to the model's type.
    fn linear(&mut self, place: &str, x: ValueId, from: i64, to: i64, biased: bool) -> Value {
        self.at(&format!("{place} (Linear)"));
        let w = self.weight(&[to, from])?;
        let y = self.b.contract(x, w, &[], &[(2, 1)], DType::F32)?;
        let y = self.b.convert(y, self.c.dtype)?;
        if !biased {
            return Ok(y);
        }
        let bias = self.weight(&[to])?;
        Ok(self.b.add2(y, bias)?)
    }

    fn norm(&mut self, place: &str, x: ValueId, size: i64) -> Value {
        self.at(&format!("{place} (RMSNorm)"));
        let scale = self.weight(&[size])?;
        let axis = self.b.rank(x) - 1;
        Ok(self.b.rms_norm(x, Some(scale), axis, self.c.epsilon)?)
    }

    fn model(&mut self, tokens: ValueId, caches: &[ValueId]) -> Result<Vec<ValueId>, LlmError> {
        let c = self.c;
        self.at("model/embed_tokens (Embedding)");
        let table = self.weight(&[c.vocabulary, c.hidden])?;
        let mut x = self.b.take(table, tokens, 0)?;
        self.at("model/rotary_emb (RotaryEmbedding)");
        let turns = self.turns()?;
        let mut present = Vec::new();
        for (i, cache) in caches.chunks_exact(2).enumerate() {
            x = self.layer(&format!("model/layers.{i}"), x, turns, [cache[0], cache[1]], &mut present)?;
        }
        self.at("model (LastToken)");
        let last = &self.sequence - 1;
        let x = self.b.slice_axis(x, 1, last, Dim::from(1))?;
        let x = self.norm("model/norm", x, c.hidden)?;
        self.at("lm_head (Linear)");
        let head = if c.tied { table } else { self.weight(&[c.vocabulary, c.hidden])? };
        let x = self.b.reshape(x, &[self.batch.clone(), c.hidden.into()])?;
        let logits = self.b.contract(x, head, &[], &[(1, 1)], DType::F32)?;
        Ok(std::iter::once(logits).chain(present).collect())
    }

    /// Cosine and sine of the angles `[sequence, head / 2]`.
    fn turns(&mut self) -> Result<[ValueId; 2], LlmError> {
        let half = self.c.head / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| self.frequency(i) as f32).collect();
        let f = self.b.constant(Tensor::from_slice(&[half as usize], &frequencies)?)?;
        let i = self.b.iota(DType::I64, &[self.sequence.clone(), Dim::from(1)], 0)?;
        let past = self.b.dim_value(self.past.clone())?;
        let position = self.b.add2(i, past)?;
        let position = self.b.convert(position, DType::F32)?;
        let angle = self.b.mul(position, f)?;
        let (cos, sin) = (self.b.unary(Unary::Cos, angle)?, self.b.unary(Unary::Sin, angle)?);
        Ok([self.b.convert(cos, self.c.dtype)?, self.b.convert(sin, self.c.dtype)?])
    }

    /// Turn of one position of a pair of elements.
    fn frequency(&self, i: i64) -> f64 {
        let plain = self.c.theta.powf(-2.0 * i as f64 / self.c.head as f64);
        match self.c.rope {
            Rope::Plain => plain,
            Rope::Linear(factor) => plain / factor,
            Rope::Llama3 { factor, low, high, length } => {
                let turns = length * plain / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                kept * plain + (1.0 - kept) * plain / factor
            }
        }
    }

    fn heads(&mut self, x: ValueId, heads: i64) -> Value {
        let dims = [self.batch.clone(), self.sequence.clone(), heads.into(), self.c.head.into()];
        let x = self.b.reshape(x, &dims)?;
        Ok(self.b.permute(x, &[0, 2, 1, 3])?)
    }

    fn layer(
        &mut self,
        place: &str,
        x: ValueId,
        turns: [ValueId; 2],
        cache: [ValueId; 2],
        present: &mut Vec<ValueId>,
    ) -> Value {
        let c = self.c;
        let (wide, narrow) = (c.heads * c.head, c.kv_heads * c.head);
        let h = self.norm(&format!("{place}/input_layernorm"), x, c.hidden)?;
        let attention = format!("{place}/self_attn");
        let mut parts = Vec::new();
        for (name, heads, size) in
            [("q", c.heads, wide), ("k", c.kv_heads, narrow), ("v", c.kv_heads, narrow)]
        {
            let y = self.linear(&format!("{attention}/{name}_proj"), h, c.hidden, size, c.biased)?;
            let mut y = self.heads(y, heads)?;
            if name != "v" {
                if c.normalised {
                    y = self.norm(&format!("{attention}/{name}_norm"), y, c.head)?;
                }
                self.at(&format!("{attention}/rotary_{name} (RotaryEmbedding)"));
                y = self.b.rotary_embedding(y, turns[0], turns[1], false)?;
            }
            parts.push(y);
        }
        self.at(&format!("{attention}/cache (Concat)"));
        let k = self.b.concat(&[cache[0], parts[1]], 2)?;
        let v = self.b.concat(&[cache[1], parts[2]], 2)?;
        present.extend([k, v]);
        self.at(&format!("{attention} (Attention)"));
        let mut spec = AttentionSpec::causal((c.head as f64).powf(-0.5), self.past.clone());
        spec.left = c.window.map(|w| (w - 1).max(0));
        let y = self.b.attention(&spec, parts[0], k, v, None)?;
        let y = self.b.permute(y, &[0, 2, 1, 3])?;
        let y = self.b.reshape(y, &[self.batch.clone(), self.sequence.clone(), wide.into()])?;
        let y = self.linear(&format!("{attention}/o_proj"), y, wide, c.hidden, c.biased_output)?;
        self.at(&format!("{place} (Add)"));
        let x = self.b.add2(x, y)?;
        let h = self.norm(&format!("{place}/post_attention_layernorm"), x, c.hidden)?;
        let mlp = format!("{place}/mlp");
        let gate = self.linear(&format!("{mlp}/gate_proj"), h, c.hidden, c.intermediate, false)?;
        let up = self.linear(&format!("{mlp}/up_proj"), h, c.hidden, c.intermediate, false)?;
        self.at(&format!("{mlp}/act_fn (SiLU)"));
        let gate = self.b.silu(gate)?;
        let y = self.b.mul(gate, up)?;
        let y = self.linear(&format!("{mlp}/down_proj"), y, c.intermediate, c.hidden, false)?;
        self.at(&format!("{mlp} (Add)"));
        Ok(self.b.add2(x, y)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_2_7B: &str = r#"{
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,
        "torch_dtype": "float16", "tie_word_embeddings": false, "hidden_act": "silu", "rope_scaling": null
    }"#;

    #[test]
    fn a_model_of_7_billion_parameters_has_as_many_as_published() {
        let d = decoder(&Config::parse(LLAMA_2_7B).unwrap()).unwrap();
        assert_eq!(d.parameters, 6_738_415_616);
        assert_eq!(tongtu_graph::verify(&d.module), Ok(()));
        assert_eq!((d.inputs.len(), d.outputs.len()), (65, 65));
    }

    /// The angles as transformers 5 and older versions write them.
    #[test]
    fn both_forms_of_rotary_parameters_are_read() {
        let with = |to: &str| {
            let c = Config::parse(&LLAMA_2_7B.replace("\"rope_scaling\": null", to))?;
            Ok::<_, crate::LlmError>((c.theta, c.rope))
        };
        let llama3 = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192"#;
        let old = format!(r#""rope_theta": 500000.0, "rope_scaling": {{"rope_type": "llama3", {llama3}}}"#);
        let new =
            format!(r#""rope_parameters": {{"rope_theta": 500000.0, "rope_type": "llama3", {llama3}}}"#);
        let want = Rope::Llama3 { factor: 8.0, low: 1.0, high: 4.0, length: 8192.0 };
        assert_eq!(with(&old).unwrap(), (500000.0, want));
        assert_eq!(with(&new).unwrap(), with(&old).unwrap());
        let plain = r#""rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}"#;
        assert_eq!(with(plain).unwrap(), (1e6, Rope::Plain));
        let layers = r#""rope_parameters": {"full_attention": {"rope_theta": 1e6}}"#;
        assert!(with(layers).unwrap_err().to_string().starts_with("[L003]"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let with =
            |from: &str, to: &str| Config::parse(&LLAMA_2_7B.replace(from, to)).unwrap_err().to_string();
        assert!(with("\"llama\"", "\"mamba\"").starts_with("[L003]"));
        assert!(with("\"silu\"", "\"gelu\"").starts_with("[L003]"));
        assert!(
            with("\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"yarn\"}").starts_with("[L003]")
        );
        assert!(with("4096", "-4096").starts_with("[L002]"));
        assert!(with("\"vocab_size\": 32000,", "").starts_with("[L002]"));
        assert!(Config::parse("[").unwrap_err().to_string().starts_with("[L002]"));
    }
}
