//! What people who move models between chips ran into elsewhere, each as one test: gaps found one by one, kernels that do not fit, errors that
//! surface one layer late, silent use of the host, code bound to one vector length, files that the next release cannot read.
#![cfg(feature = "llvm")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tongtu::onnx::{FileKind, read_file};
use tongtu::port::{self, ChipReport, Depth, Report, Settings};
use tongtu::{Chip, Error, HostValue, Model, Options, Remote, Session, VerifyOptions};
use tongtu_compile::Target;
use tongtu_compile::split::{Registers, split};
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_graph::eval::run_tensors;
use tongtu_graph::{Builder, Loc, Module, Node, Op as GraphOp, Type};
use tongtu_plan::backend::{Artifact, CompileError, Compiler, Support as Answer};
use tongtu_plan::{Device, Plan};
use tongtu_port::prove::{self, Ran};
use tongtu_port::report::{Support, Verdict};
use tongtu_port::survey::Surveyor;
use tongtu_runtime::{Value, VerifyReport};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{Combiner, DType, Num, Tensor};
use tongtu_tile::interp::{self, BufferData};
use tongtu_tile::{
    Access, Block, Inst, Kernel, KernelBuilder, Op, TileMap, Ty, Version, from_bytes, parse_kernel, to_bytes,
};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
const CONFORMANCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance");

fn host() -> Chip {
    Chip::host().unwrap()
}

fn ramp(shape: &[usize]) -> Tensor {
    Tensor::from_fn(DType::F32, shape, |i| (0.25 + ((i * 7 + 3) % 11) as f64 / 8.0).into()).unwrap()
}

// ---- 1 ----

/// The findings of a check that are failures: code and operator.
fn failures(file: &str, chip: &str) -> (Report, Vec<(String, String)>) {
    let settings = Settings::default();
    let chip: ChipReport = match port::load(file, &Default::default()) {
        Ok(model) => port::check(&model, chip, &settings, &[]).unwrap(),
        Err(e) => {
            let gaps = port::gaps(&e).unwrap_or_else(|| panic!("{e}"));
            port::refused(file, &Default::default(), chip, &settings, &gaps).unwrap()
        }
    };
    let operator = |at: &str| at.rsplit_once('(').unwrap().1.trim_end_matches(')').to_string();
    let failed = chip.findings.iter().filter(|f| matches!(f.code.as_str(), "M001" | "M002"));
    let list = failed.map(|f| (f.code.clone(), operator(&f.at))).collect();
    (Report::new("gaps", Depth::Check, Vec::new(), vec![chip]), list)
}

/// `isin`, a dynamic `Resize`, `Unique` and `NonZero` are no gaps. What is one is listed in one run, without a device, and the exit code says so.
#[test]
fn a_check_lists_every_gap_at_once() {
    for chip in ["host", "riscv64-v256", "ascend-950"] {
        let (report, list) = failures(&format!("{CONFORMANCE}/port/gaps.onnx"), chip);
        let of = |op: &str| ("M002".to_string(), op.to_string());
        assert_eq!(list, [of("QMoE"), of("FlashDecode")], "{chip}");
        assert_eq!(report.exit, 2);
    }
    // What no chip takes hides nothing of what one chip lacks, elements of f64, before it and behind it.
    let (report, list) = failures(&format!("{CONFORMANCE}/port/both.onnx"), "ascend-950");
    let of = |code: &str, op: &str| (code.to_string(), op.to_string());
    let lacking = ["Cast", "Exp", "MatMul", "Sqrt"].map(|op| of("M001", op));
    assert_eq!(list, [&[of("M002", "FlashDecode")], &lacking[..]].concat());
    assert_eq!(report.exit, 2);
    // The same without what no chip takes.
    let file = format!("{CONFORMANCE}/port/doubles.onnx");
    let (report, list) = failures(&file, "ascend-950");
    let of = |op: &str| ("M001".to_string(), op.to_string());
    assert_eq!(list, [of("Cast"), of("Exp"), of("MatMul")]);
    assert_eq!(report.exit, 2);
    let composed =
        |op: &str| report.chips[0].ops.iter().any(|o| o.op == op && o.support == Support::Composed);
    assert!(["Equal", "ReduceMax", "NonZero", "Unique", "Resize"].into_iter().all(composed));
    assert_eq!(failures(&file, "riscv64-v256").0.exit, 0);
}

// ---- 2 ----

/// Elements of a block: two of them take 200 KiB.
const LARGE: usize = 25_600;

/// A module of one kernel written by hand, over blocks of a vector.
fn by_hand(block: usize, body: impl Fn(&mut KernelBuilder, tongtu_tile::Val) -> tongtu_tile::Val) -> Module {
    let mut b = KernelBuilder::new("by_hand");
    let x = b.buffer("x", DType::F32, Access::Read);
    let y = b.buffer("y", DType::F32, Access::Write);
    let n = b.scalar("n", DType::I64);
    let (zero, one) = (b.int(0), b.int(1));
    let pid = b.program_id(0).unwrap();
    let at = b.mul_int(pid, block as i64).unwrap();
    let map = TileMap::along(&[block], &[0]);
    let from = b.view(x, zero, &[n], &[one]).unwrap();
    let to = b.view(y, zero, &[n], &[one]).unwrap();
    let block_of_x = b.load(from, &[at], map.clone(), &[false], 0.0.into()).unwrap();
    let result = body(&mut b, block_of_x);
    b.store(to, result, &[at], map, &[false]).unwrap();
    let mut m = Module::default();
    let n = Dim::from(m.symbols.fresh("n"));
    let vector = Type::tensor(DType::F32, [n.clone()]);
    let input = m.graph.add_input(vector.clone(), Some("x".into()));
    let op = GraphOp::Kernel {
        code: b.finish().to_string(),
        grid: vec![n.ceildiv(&Dim::from(block as i64))],
        scalars: vec![n],
        in_place: vec![],
        results: vec![vector.clone()],
    };
    let output = m.graph.add_value(vector, Some("y".into()));
    m.graph.nodes.push(Node { op, inputs: vec![input], outputs: vec![output], loc: Loc::new("by hand") });
    m.graph.outputs = vec![output];
    m
}

/// A chip whose programs fill a scratchpad of so many KiB.
fn with_scratchpad(kib: u64) -> Chip {
    let text = format!(
        "name = \"pad{kib}\"\ntitle = \"a scratchpad of {kib} KiB\"\nkind = \"npu\"\narch = \"none\"\n\
         cores = {{ value = 1, basis = \"assumed\", source = \"a test\" }}\nnative = [\"bool\", \"i64\", \"f32\"]\n\
         [vector]\nbits = 2048\nregisters = 32\nsource = \"a test\"\n\
         [[level]]\nname = \"pad\"\nkind = \"scratchpad\"\nscope = \"core\"\n\
         capacity = {{ value = {}, basis = \"assumed\", source = \"a test\" }}\n",
        kib << 10
    );
    Chip::parse(&text).unwrap()
}

/// A back end for such a chip, whose programs this machine runs: it takes what fits the scratchpad.
struct Pad {
    here: Chip,
    taken: Mutex<Vec<Kernel>>,
    refused: AtomicUsize,
}

impl Compiler for Pad {
    fn name(&self) -> &str {
        "cpu"
    }
    fn supports(&self, op: &Op, operands: &[Ty], results: &[Ty], _: &Chip) -> Answer {
        CpuCompiler::default().supports(op, operands, results, &self.here)
    }
    fn compile(&self, module: &tongtu_tile::Module, chip: &Chip) -> Result<Artifact, CompileError> {
        let cpu = CpuCompiler { threads: 1 };
        if let Err(e) = Surveyor::new(&cpu).compile(module, chip) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(e);
        }
        self.taken.lock().unwrap().extend(module.kernels.iter().cloned());
        // What fits the scratchpad goes through registers here.
        let small = module.kernels.iter().map(|k| split(k, Registers { bits: 128, count: 16 }).unwrap());
        cpu.compile(&tongtu_tile::Module { kernels: small.collect() }, &self.here)
    }
}

#[test]
fn a_kernel_for_a_larger_scratchpad_is_made_smaller() {
    let module = by_hand(LARGE, |b, x| b.mul(x, x).unwrap());
    let GraphOp::Kernel { code, .. } = &module.graph.nodes[0].op else { panic!() };
    let written = parse_kernel(code).unwrap();
    let x = ramp(&[2 * LARGE + 17]);
    let want = run_tensors(&module, std::slice::from_ref(&x)).unwrap();
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(1).unwrap());
    for (kib, fits) in [(228, true), (192, false)] {
        let compiler = Pad { here: host(), taken: Mutex::default(), refused: AtomicUsize::new(0) };
        let chip = with_scratchpad(kib);
        let plan = tongtu_compile::compile(module.clone(), &compiler, &chip, &Default::default()).unwrap();
        let taken = compiler.taken.into_inner().unwrap();
        let [kernel] = &taken[..] else { panic!("{} kernels", taken.len()) };
        assert_eq!(kernel.types.len() == written.types.len(), fits, "{kib} KiB:\n{kernel}");
        assert_eq!(compiler.refused.load(Ordering::Relaxed) == 0, fits);
        let session = tongtu_runtime::Session::new(plan, vec![device.clone()]).unwrap();
        let got = session.run(&[Value::Tensor(x.clone())]).unwrap();
        assert!(got[0].tensor().unwrap().unwrap().same_bits(&want[0]), "{kib} KiB");
    }
}

// ---- 3 and 4 ----

/// `|x w|`, its root, a product with another matrix, and what is opposite.
fn layers() -> Module {
    let mut m = Module::default();
    let rows = Dim::sym(m.symbols.intern("rows"));
    let x = m.graph.add_input(Type::tensor(DType::F32, [rows, Dim::from(24)]), Some("x".into()));
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    b.loc = Loc::new("first (Linear)");
    let w = b.constant(ramp(&[24, 32])).unwrap();
    let y = b.contract(x, w, &[], &[(1, 0)], DType::F32).unwrap();
    b.loc = Loc::new("size (Abs)");
    let y = b.unary(Unary::Abs, y).unwrap();
    b.loc = Loc::new("root (Sqrt)");
    let y = b.unary(Unary::Sqrt, y).unwrap();
    b.loc = Loc::new("second (Linear)");
    let w = b.constant(ramp(&[32, 8])).unwrap();
    let y = b.contract(y, w, &[], &[(1, 0)], DType::F32).unwrap();
    b.loc = Loc::new("end (Neg)");
    let y = b.unary(Unary::Neg, y).unwrap();
    m.graph.outputs = vec![y];
    m
}

/// A back end for this machine with one instruction wrong or missing.
enum Altered {
    /// Results of the instruction are off by this factor.
    Scaled(&'static str, f64),
    /// There is no such instruction.
    Without(&'static str),
}

impl Altered {
    fn scale(&self, block: Block, types: &mut Vec<Ty>) -> Block {
        let Altered::Scaled(name, by) = self else { return block };
        let mut insts = Vec::new();
        for mut inst in block.insts {
            inst.blocks = inst.blocks.into_iter().map(|b| self.scale(b, types)).collect();
            let wrong = inst.op.name() == *name;
            let Some(&result) = inst.results.first().filter(|_| wrong) else {
                insts.push(inst);
                continue;
            };
            let ty = types[result.index()].clone();
            let Ty::Tile { dtype, shape } = ty.clone() else { panic!("{ty}") };
            let mut value = |ty: &Ty| {
                types.push(ty.clone());
                tongtu_tile::Val(types.len() as u32 - 1)
            };
            let (right, factor) = (value(&ty), value(&ty));
            inst.results[0] = right;
            let like = |op, operands, result| Inst {
                op,
                operands,
                results: vec![result],
                blocks: Vec::new(),
                flags: Default::default(),
                loc: None,
            };
            let full = Op::Full { dtype, shape, value: Num::from(*by) };
            insts.push(inst);
            insts.push(like(full, vec![], factor));
            insts.push(like(Op::Binary(Binary::Mul), vec![right, factor], result));
        }
        Block { insts, ..block }
    }
}

fn has(block: &Block, name: &str) -> bool {
    block.insts.iter().any(|i| i.op.name() == name || i.blocks.iter().any(|b| has(b, name)))
}

impl Compiler for Altered {
    fn name(&self) -> &str {
        "cpu"
    }
    fn supports(&self, op: &Op, operands: &[Ty], results: &[Ty], _: &Chip) -> Answer {
        match self {
            Altered::Without(name) if op.name() == *name => Answer::No(format!("it has no {name}")),
            _ => CpuCompiler::default().supports(op, operands, results, &host()),
        }
    }
    fn compile(&self, module: &tongtu_tile::Module, chip: &Chip) -> Result<Artifact, CompileError> {
        let mut module = module.clone();
        for k in &mut module.kernels {
            if let Altered::Without(name) = self
                && has(&k.body, name)
            {
                return Err(CompileError::Unsupported {
                    kernel: k.name.clone(),
                    instruction: name.to_string(),
                    chip: chip.name.clone(),
                    reason: format!("it has no {name}"),
                });
            }
            k.body = self.scale(std::mem::take(&mut k.body), &mut k.types);
        }
        CpuCompiler { threads: 1 }.compile(&module, &host())
    }
}

/// The chip of such a back end.
fn other() -> Chip {
    Chip { name: "other".to_string(), ..host() }
}

/// Runs a plan on devices of this machine, as many as it names, and compares its kernels.
fn verified(plan: Plan, compiler: &Altered, x: &Tensor) -> (Tensor, VerifyReport) {
    let devices = 1 + usize::from(!plan.hosted.is_empty());
    let devices = (0..devices).map(|_| Arc::new(CpuDevice::new(1).unwrap()) as Arc<dyn Device>).collect();
    let session = tongtu_runtime::Session::new(plan, devices).unwrap();
    let recompile = |m: &Module| {
        let plan = tongtu_compile::compile(m.clone(), compiler, &other(), &Default::default());
        plan.map_err(|e| e.to_string())
    };
    let options = VerifyOptions { recompile: Some(&recompile), ..VerifyOptions::default() };
    let (outputs, report) = session.verify(&[Value::Tensor(x.clone())], &options).unwrap();
    (outputs[0].tensor().unwrap().unwrap(), report)
}

#[test]
fn an_operation_that_is_off_is_named() {
    let (module, x) = (layers(), ramp(&[5, 24]));
    for (name, by, op, at) in
        [("sqrt", 1.0005, "sqrt", "root (Sqrt)"), ("abs", 0.999, "abs", "size (Abs)"), ("sqrt", 1.0, "", "")]
    {
        let compiler = Altered::Scaled(name, by);
        let report = port::Settings::default();
        let report = tongtu_port::check(&module, &other(), &compiler, &report).unwrap();
        let plan = tongtu_compile::compile(module.clone(), &compiler, &other(), &Default::default()).unwrap();
        let (_, verified) = verified(plan, &compiler, &x);
        let report = prove::prove(report, &verified, Ran::default());
        let proof = report.proof.as_ref().unwrap();
        let Some(d) = &proof.diverges else {
            assert_eq!((by, report.verdict), (1.0, Verdict::Works));
            continue;
        };
        assert_eq!((d.op.as_str(), d.at.as_str(), report.verdict), (op, at, Verdict::Fails));
        assert!((d.actual / d.expected / by - 1.0).abs() < 1e-5, "{} for {}", d.actual, d.expected);
        // The products that read its results are right on the inputs that they had.
        assert_eq!(proof.failed, 1);
    }
}

#[test]
fn nothing_goes_to_the_host_unasked() {
    let (module, x) = (layers(), ramp(&[5, 24]));
    let compiler = Altered::Without("sqrt");
    let error =
        tongtu_compile::compile(module.clone(), &compiler, &other(), &Default::default()).unwrap_err();
    let error = Error::from(error);
    assert!(error.to_string().contains("root (Sqrt)"), "{error}");
    assert!(error.to_string().contains("it has no sqrt"), "{error}");
    assert!(error.hint().unwrap().contains("--allow-host"));

    let (chip, here) = (other(), host());
    let cpu = CpuCompiler { threads: 1 };
    let plan = tongtu_compile::compile_with_host(
        module.clone(),
        Target { chip: &chip, compiler: &compiler },
        Target { chip: &here, compiler: &cpu },
        &Default::default(),
    )
    .unwrap();
    let settings = Settings { sizes: vec![("rows".to_string(), 5)], allow_host: true, ..Settings::default() };
    let size = |d: &Dim| d.eval(&|_| Some(5)).unwrap();
    let checked = tongtu_port::check(&module, &chip, &compiler, &settings).unwrap();
    assert_eq!((checked.verdict, checked.placement.len()), (Verdict::Reservations, 1));
    let report = prove::placed(checked.clone(), &plan, &size);
    let [p] = &report.placement[..] else { panic!("{:?}", report.placement) };
    assert!(p.op.contains("Sqrt") && p.why.contains("it has no sqrt"), "{p:?}");
    assert_eq!(p.place, "host");
    // The operand of the kernel with the root, and its result.
    assert_eq!(p.bytes, (4 * 5 * (24 + 32)) as f64);
    assert_eq!(checked.placement[0].bytes, p.bytes);

    // A plan is not run with the host's help where that is not allowed.
    let refused = Session::from_plan(plan.clone(), &Options::host().threads(1)).err().unwrap();
    assert_eq!((refused.code().as_str(), refused.hint().unwrap().contains("--allow-host")), ("A014", true));

    let want = run_tensors(&module, std::slice::from_ref(&x)).unwrap();
    let (got, verified) = verified(plan, &compiler, &x);
    assert!(verified.passes());
    let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.abs();
    assert!(got.to_f64_vec().iter().zip(want[0].to_f64_vec()).all(|(&a, b)| near(a, b)));
    let report = prove::prove(report, &verified, Ran::default());
    assert_eq!(report.verdict, Verdict::Reservations);
}

// ---- 5 ----

#[test]
fn one_kernel_holds_at_every_vector_length() {
    // Blocks of 48, the last of which is not full. Every instruction rounds correctly, so that the contract is: the same bits.
    let module = by_hand(48, |b, x| {
        let most = b.reduce(Combiner::Max, x, &[0]).unwrap();
        let most = b.broadcast(most, &[48]).unwrap();
        let square = b.fma(x, x, most).unwrap();
        let root = b.unary(Unary::Sqrt, square).unwrap();
        b.div(root, most).unwrap()
    });
    let x = ramp(&[48 * 3 + 5]);
    let want = run_tensors(&module, std::slice::from_ref(&x)).unwrap();
    for bits in [128, 256, 512, 1024] {
        let chip = Chip::builtin(&format!("riscv64-v{bits}")).unwrap();
        let remote = match Remote::emulator(&chip) {
            Ok(remote) => remote,
            Err(e) => return eprintln!("NOT CHECKED: {e}"),
        };
        let cpu = CpuCompiler { threads: 1 };
        let plan = tongtu_compile::compile(module.clone(), &cpu, &chip, &Default::default()).unwrap();
        let session = Session::from_plan(plan, &Options::on(remote)).unwrap();
        let verify = VerifyOptions { elements: x.len(), ..VerifyOptions::default() };
        let (outputs, report) = session.verify(&[("x", x.clone())], &verify).unwrap();
        assert!(outputs.tensor("y").unwrap().same_bits(&want[0]), "{bits} bits");
        assert!(report.passes(), "{bits} bits: {} of what is allowed", report.worst_ratio());
        assert_eq!(report.checked(), x.len());
    }
}

// ---- 6 ----

/// A tile program as each release wrote it. `TONGTU_UPDATE=1` writes the current version's.
#[test]
fn programs_of_the_first_release_give_the_same_answer() {
    let module = by_hand(8, |b, x| b.mul(x, x).unwrap());
    let GraphOp::Kernel { code, .. } = &module.graph.nodes[0].op else { panic!() };
    let current = format!("{DATA}/squares-{}.tile", Version::CURRENT);
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        let kernels = vec![parse_kernel(code).unwrap()];
        std::fs::write(current, to_bytes(&tongtu_tile::Module { kernels })).unwrap();
    }
    let bytes = std::fs::read(format!("{DATA}/squares-0.1.tile")).unwrap();
    let kernel = &from_bytes(&bytes).unwrap().kernels[0];
    tongtu_tile::verify(kernel).unwrap();
    let x: Vec<f64> = (0..10).map(f64::from).collect();
    let mut buffers = [BufferData::from_f64(DType::F32, &x), BufferData::full(DType::F32, 10, 0.0.into())];
    interp::run(kernel, [2, 1, 1], &mut buffers, &[Num::from(10i64)], &interp::Options::default()).unwrap();
    assert_eq!(buffers[1].to_f64(), x.iter().map(|v| v * v).collect::<Vec<_>>());

    let mut future = bytes;
    (future[4], future[5]) = (7, 99);
    let error = from_bytes(&future).unwrap_err().to_string();
    assert_eq!(error, "[K005] the program is of version 7.99 of the instruction set, this reads 0.1 to 0.1");
}

/// A bundle of the first release, compiled for any x86-64 with SSE4.2.
#[test]
fn bundles_of_the_first_release_give_the_same_answer() {
    let path = format!("{DATA}/format-3.tongtu");
    let tensor = |name: &str| {
        let file = format!("{CONFORMANCE}/models/functions/test_data_set_0/{name}.pb");
        match read_file(file.as_ref(), FileKind::Tensor).unwrap() {
            HostValue::Tensor(t) => t,
            other => panic!("{other:?}"),
        }
    };
    match Session::open(&path, &Options::host().threads(1)) {
        Ok(session) => {
            let input = session.inputs()[0].to_string();
            let outputs = session.run(&[(input.as_str(), tensor("input_0"))]).unwrap();
            for (i, (name, got)) in outputs.iter().enumerate() {
                let (got, want) = (got.tensor().unwrap().unwrap(), tensor(&format!("output_{i}")));
                let pairs = got.to_f64_vec().into_iter().zip(want.to_f64_vec());
                assert_eq!(got.shape(), want.shape());
                pairs.for_each(|(a, b)| {
                    assert!((a - b).abs() <= 1e-5 + 1e-3 * b.abs(), "{name}: {a} for {b}")
                });
            }
        }
        Err(e) if std::env::consts::ARCH != "x86_64" => eprintln!("NOT CHECKED: {e}"),
        Err(e) => panic!("{e}"),
    }
    let mut future = std::fs::read(&path).unwrap();
    future[8] = 99;
    let file = std::env::temp_dir().join(format!("tongtu-future-{}.tongtu", std::process::id()));
    std::fs::write(&file, future).unwrap();
    let error = Session::open(&file, &Options::host()).err().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(error.code(), "P103");
    assert!(error.to_string().contains("bundle format 99"), "{error}");
    // It is the model that the file next to it still is.
    assert!(Model::load(format!("{CONFORMANCE}/models/functions/model.onnx")).is_ok());
}
