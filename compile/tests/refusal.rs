//! A back end that refuses a kernel as too large is asked again with smaller tiles.

use std::sync::{Arc, Mutex};

use tongtu_chip::Chip;
use tongtu_compile::split::{Registers, is_large};
use tongtu_compile::{Error, Options, compile};
use tongtu_graph::{Builder, Graph, Module, Type};
use tongtu_plan::{Artifact, CompileError, Compiler, Entry, Support};
use tongtu_tensor::DType;
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tile::{Op, ParamKind, Ty, verify};

/// Takes kernels whose tiles fit some registers and nothing else.
struct Small {
    limit: Registers,
    asked: Mutex<usize>,
}

impl Compiler for Small {
    fn name(&self) -> &str {
        "small"
    }
    fn supports(&self, _: &Op, _: &[Ty], _: &[Ty], _: &Chip) -> Support {
        Support::Native
    }
    fn compile(&self, module: &tongtu_tile::Module, _: &Chip) -> Result<Artifact, CompileError> {
        *self.asked.lock().unwrap() += 1;
        let k = &module.kernels[0];
        assert!(verify(k).is_ok(), "{k}");
        if is_large(k, self.limit) {
            let (need, limit) = (1 << 20, (self.limit.bits / 8 * self.limit.count) as u64);
            return Err(CompileError::TooLarge {
                kernel: k.name.clone(),
                level: "registers".into(),
                need,
                limit,
            });
        }
        let buffers = k.params.iter().filter(|p| matches!(p.kind, ParamKind::Buffer(..))).count();
        let entry = Entry { name: k.name.clone(), scratch: 0, buffers, scalars: k.params.len() - buffers };
        Ok(Artifact { backend: "small".into(), entries: vec![entry], bytes: Arc::from([0u8]) })
    }
}

fn module() -> Module {
    let mut symbols = Symbols::new();
    let rows = Dim::from(symbols.fresh("rows"));
    let mut g = Graph::default();
    let x = g.add_input(Type::tensor(DType::F32, vec![rows, 96.into()]), None);
    let w = g.add_input(Type::tensor(DType::F32, vec![96.into(), 256.into()]), None);
    let mut b = Builder::new(&mut g, &mut symbols);
    let y = b.contract(x, w, &[], &[(1, 0)], DType::F32).unwrap();
    g.outputs = vec![y];
    Module { graph: g, symbols }
}

fn attempt(count: usize) -> (Result<tongtu_plan::Plan, Error>, usize) {
    let compiler = Small { limit: Registers { bits: 512, count }, asked: Mutex::new(0) };
    let chip = Chip::builtin("x86-64-v4").unwrap();
    let plan = compile(module(), &compiler, &chip, &Options::default());
    (plan, compiler.asked.into_inner().unwrap())
}

#[test]
fn smaller_tiles_are_tried() {
    let (plan, asked) = attempt(8);
    let plan = plan.unwrap_or_else(|e| panic!("{e}"));
    assert!(plan.artifacts.len() < asked, "nothing was refused");
}

#[test]
fn a_back_end_that_takes_nothing_is_an_error() {
    let (plan, _) = attempt(0);
    let error = plan.unwrap_err();
    assert!(error.to_string().contains("registers"), "{error}");
}
