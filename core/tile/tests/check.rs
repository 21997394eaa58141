//! Checked mode: each error of a program is found, with its place, and sound programs have none.

use tongtu_tensor::{DType, Num};
use tongtu_tile::check::{Finding, Kind, Options, check};
use tongtu_tile::interp::BufferData;
use tongtu_tile::{parse_kernel, verify};

/// A kernel of buffers x (f32), t (i32) and a scalar n, with `%zero`, `%one` and instance number `%p` as `i64[1]` `%at`.
fn findings(grid: i64, body: &str, options: &Options) -> Vec<Finding> {
    let text = format!(
        "kernel @k(%x \"x\": readwrite buffer<f32>, %t \"t\": readwrite buffer<i32>, %n \"n\": i64) {{
  %zero: i64 = full {{dtype = i64, shape = [], value = 0}}
  %one: i64 = full {{dtype = i64, shape = [], value = 1}}
  %p: i64 = program_id {{axis = 0}}
  %at: i64[1] = reshape %p {{shape = [1]}}
  %first: i64[1] = reshape %zero {{shape = [1]}}
  %f: f32[1] = full {{dtype = f32, shape = [1], value = 1.0}}
  %i: i32[1] = full {{dtype = i32, shape = [1], value = 1}}
  {body}
}}
"
    );
    let k = parse_kernel(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&k).unwrap_or_else(|e| panic!("{}", e[0]));
    let mut buffers =
        [BufferData::full(DType::F32, 4, Num::Float(1.0)), BufferData::full(DType::I32, 4, Num::Int(0))];
    check(&k, [grid, 1, 1], &mut buffers, &[Num::Int(4)], options).unwrap()
}

#[track_caller]
fn one(grid: i64, body: &str, kind: Kind, line: usize, want: &str) {
    let options = Options { nan: true, uninitialised: vec![false, true], ..Options::default() };
    let found = findings(grid, body, &options);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].kind, found[0].line), (kind, line), "{}", found[0]);
    assert!(found[0].to_string().contains(want), "{}", found[0]);
}

#[test]
fn accesses_outside_are_found() {
    let view = "%v: view<f32, 1> = view %x, %zero, [%n], [%one]";
    let load = format!(
        "{view}\n %a: f32[4] = load %v[%one] {{map = [4@0], inside = [true], pad = 0.0}} @ \"model op 3\""
    );
    one(1, &load, Kind::Outside, 10, "index 4 of view dim 0");
    one(1, &load, Kind::Outside, 10, "from model op 3");
    let far = format!(
        "{}\n %a: f32[4] = load %v[%one] {{map = [4@0], inside = [false], pad = 0.0}}",
        view.replace("[%n]", "[%h]")
    );
    let far = format!("%h: i64 = add %n, %n\n{far}");
    one(1, &far, Kind::Outside, 11, "element 4 of a buffer of 4");
    let fine = format!("{view}\n %a: f32[4] = load %v[%one] {{map = [4@0], inside = [false], pad = 0.0}}");
    assert!(findings(1, &fine, &Options::default()).is_empty());
}

#[test]
fn races_are_found() {
    one(
        2,
        "scatter %x, %first, %f",
        Kind::Race,
        9,
        "element 0 of 'x' is written while instance 0, 0, 0 may touch it at line 9",
    );
    one(
        2,
        "%a: f32[1] = gather %x, %first {pad = 0.0}\n scatter %x, %at, %f",
        Kind::Race,
        9,
        "is read while",
    );
    // The other way round: who wrote later runs later here, and is found all the same.
    let back = "%a: f32[1] = gather %x, %first {pad = 0.0}\n %q: i64 = sub %one, %p\n %b: i64[1] = reshape %q {shape = [1]}\n scatter %x, %b, %f";
    one(2, back, Kind::Race, 12, "is written while instance 0, 0, 0 may touch it at line 9");
    let mixed = "atomic_reduce %x, %first, %f {combiner = add, scope = device}\n %a: f32[1] = gather %x, %first {pad = 0.0}";
    let found = findings(2, mixed, &Options::default());
    assert_eq!(
        found.iter().map(|f| (f.kind, f.line)).collect::<Vec<_>>(),
        [(Kind::Race, 9), (Kind::Race, 10)],
        "{found:?}"
    );
    assert!(findings(4, "scatter %x, %at, %f", &Options::default()).is_empty());
    let sum = "atomic_reduce %x, %first, %f {combiner = add, scope = device}";
    assert!(findings(4, sum, &Options::default()).is_empty());
}

/// Each instance writes, counts itself in, and the last one reads what all wrote.
#[test]
fn release_and_acquire_order() {
    let body = |ordering: &str| {
        format!(
            "scatter %x, %at, %f
  %old: i32[1] = atomic_rmw %t, %first, %i {{combiner = add, ordering = {ordering}, scope = device}}
  %s: i32 = reshape %old {{shape = []}}
  %three: i32 = full {{dtype = i32, shape = [], value = 3}}
  %last: bool = eq %s, %three
  if %last do () {{
    %all: i32[4] = iota {{dtype = i32, shape = [4], dim = 0}}
    %a: f32[4] = gather %x, %all {{pad = 0.0}}
  }} do () {{
  }}"
        )
    };
    assert!(findings(4, &body("acq_rel"), &Options::default()).is_empty());
    for weak in ["relaxed", "release", "acquire"] {
        let found = findings(4, &body(weak), &Options::default());
        assert_eq!(found.iter().map(|f| (f.kind, f.line)).collect::<Vec<_>>(), [(Kind::Race, 16)], "{weak}");
    }
}

#[test]
fn reads_of_nothing_are_found() {
    let scratch =
        "%s: buffer<f32> = alloc {dtype = f32, len = 4}\n %a: f32[1] = gather %s, %first {pad = 0.0}";
    one(1, scratch, Kind::Uninitialised, 10, "element 0 of a scratch buffer");
    one(
        1,
        "%a: i32[1] = gather %t, %first {pad = 0}",
        Kind::Uninitialised,
        9,
        "element 0 of a buffer of 4 i32",
    );
    assert!(findings(1, "%a: i32[1] = gather %t, %first {pad = 0}", &Options::default()).is_empty());
}

#[test]
fn sources_of_nan_are_found() {
    let log = "%m: f32[1] = neg %f\n %a: f32[1] = log %m\n %b: f32[1] = add %a, %f\n scatter %x, %at, %b";
    one(1, log, Kind::Nan, 10, "log %10");
    assert!(findings(1, log, &Options::default()).is_empty());
    let sum = "%h: f32[2] = full {dtype = f32, shape = [2], value = inf}\n %m: f32[2] = neg %h\n %c: f32[4] = concat %h, %m {dim = 0}
        %r: f32 = reduce %c {combiner = add, dims = [0]}";
    one(1, sum, Kind::Nan, 12, "reduce");
}

#[test]
fn sub_byte_neighbours_count_as_one() {
    let text = "kernel @k(%x \"x\": readwrite buffer<i4>) {
  %p: i64 = program_id {axis = 0}
  %at: i64[1] = reshape %p {shape = [1]}
  %v: i4[1] = full {dtype = i4, shape = [1], value = 1}
  scatter %x, %at, %v
}
";
    let k = parse_kernel(text).unwrap();
    let mut buffers = [BufferData::full(DType::I4, 4, Num::Int(0))];
    let found = check(&k, [2, 1, 1], &mut buffers, &[], &Options::default()).unwrap();
    assert_eq!(found.len(), 1);
}
