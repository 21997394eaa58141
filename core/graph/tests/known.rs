//! Primitives against results worked out by hand, modules against text written by hand.

use tongtu_graph::eval::{Bindings, HostValue, Sampler, run, run_tensors, sample};
use tongtu_graph::{Graph, GraphError, Loc, Module, Node, Op, Type, ValueId, text, verify};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Num, Tensor};

fn module(source: &str) -> Module {
    let m = text::parse(source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    assert_eq!(verify(&m), Ok(()), "{source}");
    m
}

/// Runs text on inputs, in both modes, and gives the results as numbers.
fn results(source: &str, inputs: &[Tensor]) -> Vec<Vec<f64>> {
    let m = module(source);
    let out = run_tensors(&m, inputs).unwrap_or_else(|e| panic!("{e}\n{source}"));
    let sampled =
        Sampler::new(&m.symbols, &m.graph, inputs.to_vec()).all().unwrap_or_else(|e| panic!("{e}\n{source}"));
    for (a, b) in out.iter().zip(&sampled) {
        assert!(a.iter().zip(b).all(|(x, y)| y.admits(x)), "{source}");
    }
    out.iter().map(Tensor::to_f64_vec).collect()
}

/// The one result of one operation on constants written in text.
fn op(constants: &[&str], line: &str) -> Vec<f64> {
    let mut source = String::from("graph \"t\" () -> (%y) {\n");
    for (name, c) in ["a", "b", "c"].iter().zip(constants) {
        let ty = &c[..c.find(']').unwrap() + 1];
        source += &format!("%{name} = constant {{value = tensor<{ty}>{}}} : {ty}\n", &c[ty.len()..]);
    }
    source += &format!("%y = {line}\n}}");
    results(&source, &[]).remove(0)
}

#[test]
fn movement() {
    let x = "f32[2, 3][1.0, 2.0, 3.0, 4.0, 5.0, 6.0]";
    assert_eq!(op(&[x], "permute %a {perm = [1, 0]} : f32[3, 2]"), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(op(&[x], "reshape %a {dims = [3, 2]} : f32[3, 2]"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let slice = "slice %a {start = [1, 2], len = [2, 2], step = [-1, -2]} : f32[2, 2]";
    assert_eq!(op(&[x], slice), [6.0, 4.0, 3.0, 1.0]);
    let pad = "pad %a, %b {low = [1, -1], high = [-1, 1]} : f32[2, 3]";
    assert_eq!(op(&[x, "f32[][9.0]"], pad), [9.0, 9.0, 9.0, 2.0, 3.0, 9.0]);
    let broadcast = "broadcast %a {dims = [2, 2, 3], axes = [0, 2]} : f32[2, 2, 3]";
    let spread = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0];
    assert_eq!(op(&[x], broadcast), spread);
    let concat = "concat %a, %b, %a {axis = 1} : f32[2, 7]";
    let joined = [1.0, 2.0, 3.0, 7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 4.0, 5.0, 6.0];
    assert_eq!(op(&[x, "f32[2, 1][7.0, 8.0]"], concat), joined);
    assert_eq!(
        op(&[], "iota {dtype = i8, dims = [2, 3], axis = 1} : i8[2, 3]"),
        [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    );
    assert_eq!(op(&["f32[1][1.0]"], "bitcast %a {to = u32} : u32[1]"), [f64::from(0x3f80_0000u32)]);
}

#[test]
fn indices_outside_read_zero_and_drop_updates() {
    let x = "f32[3][1.0, 2.0, 3.0]";
    assert_eq!(op(&[x, "i64[4][2, -1, 3, 0]"], "take %a, %b {axis = 0} : f32[4]"), [3.0, 0.0, 0.0, 1.0]);
    let along = "take_along %a, %b {axis = 1} : i16[2, 1]";
    assert_eq!(op(&["i16[2, 2][1, 2, 3, 4]", "i32[2, 1][1, 7]"], along), [2.0, 0.0]);
    let gather = "gather_nd %a, %b {batch = 1} : i16[2, 1]";
    assert_eq!(op(&["i16[2, 2][1, 2, 3, 4]", "i32[2, 1, 1][1, 0]"], gather), [2.0, 3.0]);
    let scatter = |c: &str| format!("scatter_nd %a, %b, %c {{combiner = \"{c}\"}} : f32[3]");
    let (i, u) = ("i64[5, 1][0, 0, 5, -1, 2]", "f32[5][10.0, 20.0, 30.0, 40.0, 50.0]");
    assert_eq!(op(&[x, i, u], &scatter("replace")), [20.0, 2.0, 50.0]);
    assert_eq!(op(&[x, i, u], &scatter("add")), [31.0, 2.0, 53.0]);
    assert_eq!(op(&[x, i, u], &scatter("min")), [1.0, 2.0, 3.0]);
    let along = "scatter_along %a, %b, %c {axis = 0, combiner = \"mul\"} : i8[2, 2]";
    assert_eq!(
        op(&["i8[2, 2][1, 2, 3, 4]", "i32[1, 2][1, 0]", "i8[1, 2][5, 7]"], along),
        [1.0, 14.0, 15.0, 4.0]
    );
}

#[test]
fn reductions_of_nothing_give_identities() {
    let none = "f32[0, 2][]";
    let reduce = |c: &str| format!("reduce %a {{combiner = \"{c}\", axes = [0]}} : f32[2]");
    assert_eq!(op(&[none], &reduce("add")), [0.0, 0.0]);
    assert_eq!(op(&[none], &reduce("mul")), [1.0, 1.0]);
    assert_eq!(op(&[none], &reduce("max")), [f64::NEG_INFINITY; 2]);
    let int = "reduce %a {combiner = \"min\", axes = [0]} : i8[]";
    assert_eq!(op(&["i8[0][]"], int), [127.0]);
    assert_eq!(op(&["u8[0][]"], "reduce %a {combiner = \"and\", axes = [0]} : u8[]"), [255.0]);
}

#[test]
fn low_precision_sums_accumulate_wide() {
    // In f16, 2048 + 1 is 2048 however often one is added; in f32 the sum is 2056.
    let ones = format!("f16[9][2048.0{}]", ", 1.0".repeat(8));
    assert_eq!(op(&[&ones], "reduce %a {combiner = \"add\", axes = [0]} : f16[]"), [2056.0]);
    assert_eq!(op(&["u8[3][200, 100, 1]"], "reduce %a {combiner = \"add\", axes = [0]} : u8[]"), [45.0]);
}

#[test]
fn arg_combiners_break_ties_and_prefer_nan() {
    let run = |c: &str, x: &str| {
        let source = format!(
            "graph \"t\" () -> (%v, %k) {{
               %a = constant {{value = tensor<f32[4]>{x}}} : f32[4]
               %i = iota {{dtype = i64, dims = [4], axis = 0}} : i64[4]
               %v, %k = reduce %a, %i {{combiner = \"{c}\", axes = [0]}} : f32[], i64[]
             }}"
        );
        let r = results(&source, &[]);
        (r[0][0], r[1][0])
    };
    assert_eq!(run("argmax", "[1.0, 5.0, 5.0, 2.0]"), (5.0, 1.0));
    assert_eq!(run("argmax_last", "[1.0, 5.0, 5.0, 2.0]"), (5.0, 2.0));
    assert_eq!(run("argmin", "[0.0, -0.0, 5.0, 0.0]").1, 0.0);
    assert_eq!(run("argmin_last", "[1.0, 3.0, 1.0, 2.0]"), (1.0, 2.0));
    assert_eq!(run("argmax", "[1.0, nan, 9.0, nan]").1, 1.0);
    assert_eq!(run("argmin_last", "[1.0, nan, 9.0, nan]").1, 3.0);
}

#[test]
fn scans_and_sorts() {
    let x = "i32[2, 3][1, 2, 3, 4, 5, 6]";
    let scan = |e: bool, r: bool| {
        format!("scan %a {{combiner = \"add\", axis = 1, exclusive = {e}, reverse = {r}}} : i32[2, 3]")
    };
    assert_eq!(op(&[x], &scan(false, false)), [1.0, 3.0, 6.0, 4.0, 9.0, 15.0]);
    assert_eq!(op(&[x], &scan(true, false)), [0.0, 1.0, 3.0, 0.0, 4.0, 9.0]);
    assert_eq!(op(&[x], &scan(true, true)), [5.0, 3.0, 0.0, 11.0, 6.0, 0.0]);
    let max = "scan %a {combiner = \"max\", axis = 0, exclusive = false, reverse = false} : f32[4]";
    assert_eq!(op(&["f32[4][1.0, 3.0, 2.0, 4.0]"], max), [1.0, 3.0, 3.0, 4.0]);
    let source = "graph \"t\" () -> (%v, %k) {
        %a = constant {value = tensor<f32[6]>[3.0, nan, 1.0, 3.0, -inf, 1.0]} : f32[6]
        %i = iota {dtype = u8, dims = [6], axis = 0} : u8[6]
        %v, %k = sort %a, %i {axis = 0, descending = true} : f32[6], u8[6]
    }";
    let r = results(source, &[]);
    assert!(r[0][0].is_nan());
    assert_eq!(r[0][1..], [3.0, 3.0, 1.0, 1.0, f64::NEG_INFINITY]);
    // Stable in both directions.
    assert_eq!(r[1], [1.0, 0.0, 3.0, 2.0, 5.0, 4.0]);
}

#[test]
fn contractions_name_their_dims() {
    let (a, b) = ("i8[2, 3][1, 2, 3, 4, 5, 6]", "i8[3, 2][1, 0, 0, 1, 1, 1]");
    let line = "contract %a, %b {batch = [], over = [[1, 0]], acc = i32} : i32[2, 2]";
    assert_eq!(op(&[a, b], line), [4.0, 5.0, 10.0, 11.0]);
    // Batch dims come first wherever they are in the operands; all of the first operand's dims may be batch.
    let line = "contract %a, %b {batch = [[1, 0]], over = [[0, 1]], acc = i32} : i32[3]";
    assert_eq!(op(&[a, b], line), [1.0, 5.0, 9.0]);
    let outer = "contract %a, %b {batch = [], over = [], acc = f32} : f32[2, 2]";
    assert_eq!(op(&["f32[2][1.0, 2.0]", "bf16[2][3.0, 4.0]"], outer), [3.0, 4.0, 6.0, 8.0]);
}

#[test]
fn loops_grow_values() {
    // Appends a row each turn: the carried value changes its dims.
    let source = "symbol n
        symbol m
        graph \"t\" (%x: i64[n, 2], %k: i64[]) -> (%out) {
          %zero = constant {value = tensor<i64[]>[0]} : i64[]
          %go = gt %k, %zero : bool[]
          %left, %out = while %go, %k, %x {body = graph \"turn\" (%k: i64[], %x: i64[m, 2]) -> (%more, %k1, %y) {
              %one = constant {value = tensor<i64[]>[1]} : i64[]
              %zero = constant {value = tensor<i64[]>[0]} : i64[]
              %k1 = sub %k, %one : i64[]
              %row = broadcast %k1 {dims = [1, 2], axes = []} : i64[1, 2]
              %y = concat %x, %row {axis = 0} : i64[m + 1, 2]
              %more = gt %k1, %zero : bool[]
            }, results = [i64[], i64[m, 2]]} : i64[], i64[m, 2]
        }";
    let x = Tensor::from_slice(&[1, 2], &[7i64, 8]).unwrap();
    let k = Tensor::scalar(DType::I64, Num::Int(3));
    assert_eq!(results(source, &[x, k]), [[7.0, 8.0, 2.0, 2.0, 1.0, 1.0, 0.0, 0.0]]);
}

#[test]
fn nonzero_binds_its_size() {
    let source = "symbol n
        symbol s 0..4
        graph \"t\" (%x: f32[n]) -> (%y) {
          %zero = constant {value = tensor<f32[]>[0.0]} : f32[]
          %zeros = broadcast %zero {dims = [<n>], axes = []} : f32[n]
          %p = gt %x, %zeros : bool[n]
          %k = cast %p {to = i64, mode = [\"format\", \"nearest_even\"]} : i64[n]
          %c = reduce %k {combiner = \"add\", axes = [0]} : i64[]
          bind %c {sym = $s}
          %y = iota {dtype = i64, dims = [<s>], axis = 0} : i64[s]
        }";
    let x = Tensor::from_slice(&[5], &[1f32, -1.0, 2.0, 0.0, 3.0]).unwrap();
    assert_eq!(results(source, &[x]), [[0.0, 1.0, 2.0]]);
    // Five are more than the bound that 's' is declared with.
    let x = Tensor::from_slice(&[5], &[1f32; 5]).unwrap();
    let e = run_tensors(&module(source), &[x]).unwrap_err();
    assert!(matches!(&e, GraphError::Eval { op, .. } if op == "bind"), "{e}");
}

#[test]
fn sizes_are_checked_when_bound() {
    let source = "symbol n 1..3 multiple 1
        symbol m
        graph \"t\" (%x: f32[n], %y: f32[m]) -> (%z) {
          %z = add %x, %y : f32[n]  @ \"block.3/Add\"
        }";
    let m = module(source);
    let of = |n: usize| Tensor::from_slice(&[n], &vec![1f32; n]).unwrap();
    assert!(run_tensors(&m, &[of(2), of(2)]).is_ok());
    let e = run_tensors(&m, &[of(2), of(3)]).unwrap_err().to_string();
    assert!(e.contains("block.3/Add"), "{e}");
    assert!(run_tensors(&m, &[of(4), of(4)]).unwrap_err().to_string().contains("1..3"));
    assert!(run_tensors(&m, &[of(2)]).is_err());
    assert!(sample(&m.symbols, &m.graph, &[of(2), of(2)], 0, &[2]).is_err());
}

#[test]
fn absurd_sizes_are_refused() {
    let huge = "graph \"t\" () -> (%y) { %y = iota {dtype = i8, dims = [1000000, 1000000], axis = 0} : i8[1000000, 1000000] }";
    let e = run_tensors(&module(huge), &[]).unwrap_err();
    assert!(e.to_string().contains("elements"), "{e}");
}

#[test]
fn long_chains_are_sampled_without_overflowing_the_stack() {
    let mut m = Module::default();
    let mut v = m.graph.add_input(Type::tensor(DType::F32, vec![Dim::from(1)]), None);
    for _ in 0..11_000 {
        let out = m.graph.add_value(Type::tensor(DType::F32, vec![Dim::from(1)]), None);
        m.graph.nodes.push(Node {
            op: Op::Unary(tongtu_tensor::scalar::Unary::Neg),
            inputs: vec![v],
            outputs: vec![out],
            loc: Loc::default(),
        });
        v = out;
    }
    m.graph.outputs = vec![v];
    let x = Tensor::from_slice(&[1], &[2.5f32]).unwrap();
    let a = sample(&m.symbols, &m.graph, std::slice::from_ref(&x), 0, &[0]).unwrap();
    assert_eq!((a[0].value, a[0].err), (Num::Float(2.5), 0.0));
    for _ in 0..2_000 {
        let node = m.graph.nodes[0].clone();
        let out = m.graph.add_value(m.graph.ty(v).clone(), None);
        m.graph.nodes.push(Node { inputs: vec![v], outputs: vec![out], ..node });
        v = out;
    }
    m.graph.outputs = vec![v];
    assert!(sample(&m.symbols, &m.graph, &[x], 0, &[0]).is_err());
}

#[test]
fn bounds_follow_the_contract() {
    // Two f32 numbers have one sum; of a thousand, any order is allowed.
    let two = "graph \"t\" (%x: f32[2]) -> (%y) { %y = reduce %x {combiner = \"add\", axes = [0]} : f32[] }";
    let m = module(two);
    let x = Tensor::from_slice(&[2], &[0.1f32, 0.2]).unwrap();
    let a = sample(&m.symbols, &m.graph, &[x], 0, &[0]).unwrap()[0];
    assert!(a.admits(Num::Float((0.1f32 + 0.2f32).into())));
    assert!(a.err < 1e-7);

    let many =
        "graph \"t\" (%x: f32[1000]) -> (%y) { %y = reduce %x {combiner = \"add\", axes = [0]} : f32[] }";
    let m = module(many);
    let x: Vec<f32> = (0..1000).map(|i| ((i * 7919 % 1000) as f32 - 300.0) * 0.37).collect();
    let forwards: f32 = x.iter().sum();
    let backwards: f32 = x.iter().rev().sum();
    let a = sample(&m.symbols, &m.graph, &[Tensor::from_slice(&[1000], &x).unwrap()], 0, &[0]).unwrap()[0];
    assert!(a.admits(Num::Float(forwards.into())) && a.admits(Num::Float(backwards.into())));
    let size: f64 = x.iter().map(|v| f64::from(v.abs())).sum();
    assert!(a.err > 0.0 && a.err < size * 1e-4);
    assert!(!a.admits(Num::Float(f64::from(forwards) + size * 1e-3)));

    // Whole numbers add up exactly in any order, and so decide comparisons.
    let x = Tensor::from_fn(DType::F32, &[1000], |i| Num::Float((i % 7) as f64)).unwrap();
    let a = sample(&m.symbols, &m.graph, &[x], 0, &[0]).unwrap()[0];
    assert_eq!(a.err, 0.0);
}

#[test]
fn ties_within_the_error_are_accepted() {
    // The two sums differ by less than their rounding: either place may win.
    let source = "graph \"t\" (%x: f32[2, 100]) -> (%k) {
        %s = reduce %x {combiner = \"add\", axes = [1]} : f32[2]
        %i = iota {dtype = i64, dims = [2], axis = 0} : i64[2]
        %v, %k = reduce %s, %i {combiner = \"argmax\", axes = [0]} : f32[], i64[]
    }";
    let m = module(source);
    let near = Tensor::from_fn(DType::F32, &[2, 100], |i| Num::Float(0.1 + 1e-9 * i as f64)).unwrap();
    let a = sample(&m.symbols, &m.graph, &[near], 0, &[0]).unwrap()[0];
    assert!(a.admits(Num::Int(0)) && a.admits(Num::Int(1)) && !a.admits(Num::Int(3)));
    let far = Tensor::from_fn(DType::F32, &[2, 100], |i| Num::Float(0.1 + i as f64)).unwrap();
    let a = sample(&m.symbols, &m.graph, &[far], 0, &[0]).unwrap()[0];
    assert!(a.admits(Num::Int(1)) && !a.admits(Num::Int(0)));
}

#[test]
fn values_on_the_host_pass_through() {
    let source = "symbol n
        graph \"t\" (%s: strings[n]) -> (%joined, %same, %q) {
          %tail = host {name = \"strings_constant\", attributes = [[\"value\", [\"!\"]]], results = [strings[1]]} : strings[1]
          %joined = host %s, %tail {name = \"strings_concat\", attributes = [], results = [strings[n]]} : strings[n]
          %same = host %s, %joined {name = \"strings_equal\", attributes = [], results = [bool[n]]} : bool[n]
          %q = host %s, %joined {name = \"sequence_construct\", attributes = [], results = [seq<strings[n]>]} : seq<strings[n]>
        }";
    let m = module(source);
    let s = HostValue::Strings { shape: vec![2], data: vec!["a".into(), "b\"".into()] };
    let out = run(&m, &[s]).unwrap();
    assert!(matches!(&out[0], HostValue::Strings { data, .. } if data == &["a!", "b\"!"]));
    assert_eq!(out[1].as_tensor().unwrap().to_f64_vec(), [0.0, 0.0]);
    assert!(matches!(&out[2], HostValue::Sequence(q) if q.len() == 2));
}

/// Errors of a module's text, in words.
fn refused(source: &str) -> Vec<String> {
    let m = text::parse(source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    verify(&m).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_verifier_lists_everything() {
    let errors = refused(
        "symbol n
         symbol s
         graph \"t\" (%x: f32[n], %i: i32[n]) -> (%a) state (0, 0), (5, 0) {
           %a = add %x, %i : f32[n]  @ \"first\"
           %b = permute %x {perm = [1]} : f32[n]  @ \"second\"
           %c = exp %x : f16[n]  @ \"third\"
           %d = iota {dtype = i64, dims = [<s>], axis = 0} : i64[s]  @ \"fourth\"
           %e = select %x : f32[n]  @ \"fifth\"
           %k = constant {value = tensor<i64[]>[1]} : i64[]
           bind %k {sym = $n}  @ \"sixth\"
         }",
    );
    for (part, place) in [
        ("G002", "first"),
        ("G003", "second"),
        ("G002", "third"),
        ("'s' is used before", "fourth"),
        ("G001", "fifth"),
        ("'n' is bound already", "sixth"),
        ("no such input", ""),
    ] {
        assert!(
            errors.iter().any(|e| e.contains(part) && e.contains(place)),
            "{part} at {place}: {errors:#?}"
        );
    }
}

#[test]
fn broken_structure_is_found() {
    let f = |n: u32| Type::tensor(DType::F32, vec![Dim::from(i64::from(n))]);
    let mut g = Graph::default();
    let x = g.add_input(f(2), None);
    let y = g.add_value(f(2), Some("y".into()));
    let neg = Op::Unary(tongtu_tensor::scalar::Unary::Neg);
    let node = |i: ValueId, o: ValueId| Node {
        op: neg.clone(),
        inputs: vec![i],
        outputs: vec![o],
        loc: Loc::new("here"),
    };
    let check = |g: &Graph, part: &str| {
        let errors = verify(&Module { graph: g.clone(), ..Module::default() }).unwrap_err();
        assert!(errors.iter().any(|e| e.to_string().contains(part)), "{part}: {errors:?}");
        // Neither the printer nor the evaluator trips over it.
        let m = Module { graph: g.clone(), ..Module::default() };
        let _ = text::print(&m);
        let x = Tensor::from_slice(&[2], &[1f32, 2.0]).unwrap();
        let _ = run_tensors(&m, &[x]);
    };
    let mut bad = g.clone();
    bad.nodes = vec![node(y, y)];
    check(&bad, "before its definition");
    bad.nodes = vec![node(x, y), node(x, y)];
    check(&bad, "defined twice");
    bad.nodes = vec![node(x, x)];
    check(&bad, "defined twice");
    bad.nodes = vec![];
    bad.outputs = vec![y];
    check(&bad, "no definition");
    bad.outputs = vec![ValueId(99)];
    check(&bad, "no definition");
    bad.outputs = vec![];
    bad.nodes = vec![node(ValueId(50), y)];
    check(&bad, "before its definition");
    bad.nodes = vec![node(x, ValueId(50))];
    check(&bad, "no value of the graph");
    bad.nodes = vec![];
    bad.inputs = vec![x, x];
    check(&bad, "listed twice");
}

#[test]
fn text_errors_name_the_place() {
    for (source, line, column, part) in [
        ("graph \"t\" () -> () {\n  %y = add %x : f32[]\n}", 2, 12, "not defined"),
        ("graph \"t\" () -> (%q) {\n}", 1, 18, "not defined"),
        ("graph \"t\" (%x: f99[2]) -> () {}", 1, 16, "a type"),
        ("graph \"t\" (%x: f32[n]) -> () {}", 1, 20, "not declared"),
        ("graph \"t\" () -> () {\n  %y = frobnicate : f32[]\n}", 2, 3, "unknown operation"),
        ("graph \"t\" () -> () {\n  %y = iota {axis = 0} : f32[]\n}", 2, 3, "missing"),
        ("graph \"t\" () -> () {\n%y = constant {value = tensor<u2[1]>[4]} : u2[1]}", 2, 38, "no element"),
        ("graph \"t\" () -> () {} }", 1, 23, "after the end"),
        ("symbol n\nsymbol n\ngraph \"t\" () -> () {}", 3, 1, "twice"),
    ] {
        match text::parse(source) {
            Err(GraphError::Parse { line: l, column: c, detail }) => {
                assert!((l, c) == (line, column) && detail.contains(part), "{source}: {l}:{c} {detail}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
    let deep = format!("graph \"t\" () -> () {{ %y = host {{name = {}", "[".repeat(100_000));
    assert!(matches!(text::parse(&deep), Err(GraphError::Parse { .. })));
    let deep = format!("graph \"t\" (%x: {}", "seq<".repeat(100_000));
    assert!(matches!(text::parse(&deep), Err(GraphError::Parse { .. })));
    let wide = "graph \"t\" () -> () { %y = constant {value = tensor<f64[4294967296, 4294967296]> splat 0.0} : any }";
    assert!(matches!(text::parse(wide), Err(GraphError::Parse { .. })));
}

#[test]
fn constants_keep_their_bits() {
    let elements: Vec<(DType, Vec<u64>)> = DType::ALL
        .iter()
        .map(|&d| {
            let mask = u64::MAX >> (64 - d.bits());
            let codes = [
                0,
                1,
                2,
                mask,
                mask / 2,
                mask / 2 + 1,
                0x7fc0_0001,
                0x7ff8_0000_0000_0001,
                0x1234_5678_9abc_def0,
            ];
            (d, codes.iter().map(|c| if d.is_bool() { c & 1 } else { c & mask }).collect())
        })
        .collect();
    for (d, codes) in elements {
        for repeat in [1, 20] {
            let mut t = Tensor::zeros(d, &[codes.len() * repeat]).unwrap();
            (0..t.len()).for_each(|i| t.set_code(i, codes[i % codes.len()]));
            let mut m = Module::default();
            let v = m.graph.add_value(Type::tensor(d, vec![Dim::from(t.len() as i64)]), None);
            m.graph.nodes.push(Node {
                op: Op::Constant { value: t.clone() },
                inputs: vec![],
                outputs: vec![v],
                loc: Loc::default(),
            });
            let back = text::parse(&text::print(&m)).unwrap();
            match &back.graph.nodes[0].op {
                Op::Constant { value } => assert!(value.same_bits(&t), "{d}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn bindings_check_bounds() {
    let mut m = module("symbol n 2..8 multiple 2\nsymbol k\ngraph \"t\" (%x: f32[n, k]) -> (%x) {}");
    let n = m.symbols.intern("n");
    let mut b = Bindings::new();
    assert!(b.bind(&m.symbols, n, 3).is_err());
    assert!(b.bind(&m.symbols, n, 10).is_err());
    assert!(b.bind(&m.symbols, n, 0).is_err());
    assert!(b.bind(&m.symbols, n, 6).is_ok());
    assert_eq!(b.eval(&(Dim::from(n) * 3 - 1), &m.symbols), Ok(17));
    let k = m.symbols.intern("k");
    assert!(b.eval(&Dim::from(k), &m.symbols).is_err());
    assert!(b.shape(&[Dim::from(n) - 7], &m.symbols).is_err());
}

/// Numbers at the edge of their range, wherever an operation takes numbers: refused or computed, never a panic.
#[test]
fn extreme_attributes_do_no_harm() {
    let lines = [
        "slice %x {start = [A, B], len = [C, 1], step = [B, A]}",
        "slice %x {start = [0, 0], len = [2, 1], step = [A, B]}",
        "pad %x, %s {low = [A, B], high = [C, A]}",
        "pad %x, %s {low = [A, 0], high = [B, 0]}",
        "broadcast %s {dims = [A, B], axes = []}",
        "broadcast %x {dims = [A, 2, 3], axes = [1, 2]}",
        "reshape %x {dims = [A, B]}",
        "iota {dtype = i8, dims = [A], axis = 0}",
        "reduce %x {combiner = \"add\", axes = [A]}",
        "scan %x {combiner = \"add\", axis = A, exclusive = true, reverse = false}",
        "take %x, %i {axis = A}",
        "gather_nd %x, %i {batch = A}",
        "contract %x, %x {batch = [], over = [[A, B]], acc = f32}",
        "dim {dim = A}",
        "window_reduce %x {combiner = \"add\", spec = [[A, 1], [1, B], [[0, C], [A, 0]], [C, 1]]}",
        "window_reduce %x {combiner = \"max\", spec = [[2, 1], [A, 1], [[B, C], [0, 0]], [1, A]]}",
        "window_reduce %x {combiner = \"max\", spec = [[1, 1], [1, 1], [[A, B], [0, 0]], [1, 1]]}",
        "conv %c, %c {spec = [[\"n\", \"c\", \"s0\"], [\"n\", \"c\", \"s0\"], [\"n\", \"c\", \"s0\"], [A], [[B, C]], [1], [A], 1], acc = f32}",
        "conv %c, %c {spec = [[\"n\", \"c\", \"s0\"], [\"n\", \"c\", \"s0\"], [\"n\", \"c\", \"s0\"], [1], [[A, B]], [C], [1], A], acc = f32}",
    ];
    let numbers = [
        "-9223372036854775808",
        "-9223372036854775807",
        "-1",
        "0",
        "1",
        "2",
        "4611686018427387904",
        "9223372036854775807",
    ];
    for line in lines {
        for a in numbers {
            for b in numbers {
                for c in ["-9223372036854775808", "0", "1", "9223372036854775807"] {
                    let line: String = line
                        .split_inclusive(|ch: char| !ch.is_alphanumeric())
                        .map(|part| {
                            let word = part.trim_end_matches(|ch: char| !ch.is_alphanumeric());
                            let rest = &part[word.len()..];
                            let word = match word {
                                "A" => a,
                                "B" => b,
                                "C" => c,
                                w => w,
                            };
                            format!("{word}{rest}")
                        })
                        .collect();
                    let head = "%s = constant {value = tensor<f32[]>[0.0]} : f32[]
                        %x = constant {value = tensor<f32[2, 3]>[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]} : f32[2, 3]
                        %c = constant {value = tensor<f32[1, 1, 2]>[1.0, 2.0]} : f32[1, 1, 2]
                        %i = constant {value = tensor<i64[1]>[1]} : i64[1]";
                    // The result's type is taken from inference, as a builder does.
                    let Ok(mut m) =
                        text::parse(&format!("graph \"t\" () -> () {{ {head} %y = {line} : any }}"))
                    else {
                        continue;
                    };
                    let node = m.graph.nodes.pop().unwrap();
                    let types: Vec<Type> = node.inputs.iter().map(|&v| m.graph.ty(v).clone()).collect();
                    let Ok(types) = tongtu_graph::infer::infer(&node.op, &types, &m.symbols, &node.loc)
                    else {
                        continue;
                    };
                    m.graph.values.pop();
                    let y = m.graph.add_value(types[0].clone(), None);
                    m.graph.nodes.push(Node { outputs: vec![y], ..node });
                    m.graph.outputs = vec![y];
                    let small = m
                        .graph
                        .dims(y)
                        .iter()
                        .try_fold(1i64, |n, d| n.checked_mul(d.as_const()?))
                        .is_none_or(|n| n < 1000);
                    if verify(&m).is_ok() && small {
                        let _ = run_tensors(&m, &[]);
                    }
                }
            }
        }
    }
}
