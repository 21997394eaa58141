//! The host library against results worked out by hand (and NumPy's way of writing numbers).

use tongtu_graph::eval::HostValue;
use tongtu_graph::eval::host::{NAMES, call, number_text};
use tongtu_graph::{AttrValue, Type};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Num, Tensor};

fn strings(shape: &[usize], data: &[&str]) -> HostValue {
    HostValue::Strings { shape: shape.to_vec(), data: data.iter().map(|s| s.to_string()).collect() }
}

fn ints(shape: &[usize], data: &[i64]) -> HostValue {
    Tensor::from_slice(shape, data).unwrap().into()
}

fn text(s: &str) -> AttrValue {
    AttrValue::Str(s.into())
}

fn list(items: &[&str]) -> AttrValue {
    AttrValue::List(items.iter().map(|s| text(s)).collect())
}

fn run(name: &str, attributes: &[(&str, AttrValue)], inputs: &[HostValue]) -> Vec<HostValue> {
    let attributes: Vec<(String, AttrValue)> =
        attributes.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
    call(name, &attributes, &[], inputs).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn check(name: &str, attributes: &[(&str, AttrValue)], inputs: &[HostValue], want: &HostValue) {
    let got = run(name, attributes, inputs);
    assert!(got[0].same(want), "{name}: {:?}, not {want:?}", got[0]);
}

fn bools(shape: &[usize], data: &[bool]) -> HostValue {
    Tensor::from_fn(DType::Bool, shape, |i| Num::from(data[i])).unwrap().into()
}

#[test]
fn text_operations() {
    let x = strings(&[2, 2], &["a", "b", "c", "d"]);
    check("strings_take", &[], &[x.clone(), ints(&[3], &[3, 0, 9])], &strings(&[3], &["d", "a", ""]));
    let y = strings(&[1], &["z"]);
    check("strings_take", &[], &[x.clone(), y, ints(&[2], &[4, 3])], &strings(&[2], &["z", "d"]));
    let row = strings(&[2], &["a", "d"]);
    check("strings_equal", &[], &[x.clone(), row.clone()], &bools(&[2, 2], &[true, false, false, true]));
    let column = strings(&[2, 1], &["1", "2"]);
    check("strings_concat", &[], &[column, row], &strings(&[2, 2], &["1a", "1d", "2a", "2d"]));
    let mail = strings(&[3], &["me@x.org", "me", "you@x.org!"]);
    check(
        "strings_match",
        &[("pattern", text(r"\w+@\w+\.org"))],
        &[mail],
        &bools(&[3], &[true, false, false]),
    );
    let keys = list(&["x", "d", "a"]);
    let at = run("strings_lookup", &[("keys", keys), ("default", AttrValue::Int(-7))], &[x]);
    assert_eq!(at[0].as_tensor().unwrap().to_i64_vec().unwrap(), [2, -7, -7, 1]);
    let dims = [Type::Strings { dims: vec![Dim::from(1), Dim::from(2)] }];
    let c = call("strings_constant", &[("value".into(), list(&["p", "q"]))], &dims, &[]).unwrap();
    assert!(c[0].same(&strings(&[1, 2], &["p", "q"])));
    assert!(call("strings_constant", &[("value".into(), list(&["p"]))], &dims, &[]).is_err());
}

#[test]
fn splitting_and_normalising() {
    let x = strings(&[2], &["a,b,,c", "d"]);
    let out = run("strings_split", &[("delimiter", text(","))], std::slice::from_ref(&x));
    assert!(out[0].same(&strings(&[2, 4], &["a", "b", "", "c", "d", "", "", ""])));
    assert_eq!(out[1].as_tensor().unwrap().to_i64_vec().unwrap(), [4, 1]);
    let out = run("strings_split", &[("delimiter", text(",")), ("maxsplit", AttrValue::Int(1))], &[x]);
    assert!(out[0].same(&strings(&[2, 2], &["a", "b,,c", "d", ""])));
    let x = strings(&[3], &["  hello  big world ", "", " x"]);
    let out = run("strings_split", &[], std::slice::from_ref(&x));
    assert!(out[0].same(&strings(&[3, 3], &["hello", "big", "world", "", "", "", "x", "", ""])));
    let out = run("strings_split", &[("maxsplit", AttrValue::Int(1))], &[x]);
    assert!(out[0].same(&strings(&[3, 2], &["hello", "big world", "", "", "x", ""])));

    let week = strings(&[4], &["monday", "Tuesday", "tuesday", "Mittwoch"]);
    let stop = [("stopwords", list(&["tuesday"])), ("case", text("upper"))];
    check("strings_normalize", &stop, std::slice::from_ref(&week), &strings(&[2], &["MONDAY", "MITTWOCH"]));
    let exact = [("stopwords", list(&["tuesday"])), ("case_sensitive", AttrValue::Bool(true))];
    check("strings_normalize", &exact, &[week], &strings(&[3], &["monday", "Tuesday", "Mittwoch"]));
    let all = strings(&[1, 1], &["x"]);
    check("strings_normalize", &[("stopwords", list(&["x"]))], &[all], &strings(&[1, 1], &[""]));
}

/// What `str` of NumPy's scalars gives.
#[test]
fn numbers_as_text() {
    for (d, x, want) in [
        (DType::F32, 0.1f32 as f64, "0.1"),
        (DType::F32, 0.47892547, "0.47892547"),
        (DType::F32, 1e-5f32 as f64, "1e-05"),
        (DType::F32, 1e20f32 as f64, "1e+20"),
        (DType::F32, 123456790.0, "123456790.0"),
        (DType::F64, 1e16, "1e+16"),
        (DType::F64, 1e15, "1000000000000000.0"),
        (DType::F64, 0.0001, "0.0001"),
        (DType::F64, -1.5, "-1.5"),
        (DType::F64, 2.5e-7, "2.5e-07"),
        (DType::F16, 0.0999755859375, "0.1"),
        (DType::F64, f64::INFINITY, "inf"),
        (DType::F64, f64::NAN, "nan"),
        (DType::F64, -0.0, "-0.0"),
    ] {
        let x = d.decode(d.encode(Num::Float(x), tongtu_tensor::Overflow::Format));
        assert_eq!(number_text(d, x), want);
    }
    assert_eq!(number_text(DType::U64, Num::Int(u64::MAX.into())), "18446744073709551615");
}

#[test]
fn text_as_numbers() {
    let x = strings(&[5], &["1.5", " -2e3 ", "NaN", "-INF", "+inf"]);
    let out = run("strings_to_numbers", &[("to", AttrValue::DType(DType::F32))], &[x]);
    let v = out[0].as_tensor().unwrap().to_f64_vec();
    assert!(v[..2] == [1.5, -2000.0] && v[2].is_nan() && v[3..] == [f64::NEG_INFINITY, f64::INFINITY]);
    let out =
        run("strings_to_numbers", &[("to", AttrValue::DType(DType::I8))], &[strings(&[2], &["-7", "3.9"])]);
    assert_eq!(out[0].as_tensor().unwrap().to_f64_vec(), [-7.0, 3.0]);
    assert!(
        call(
            "strings_to_numbers",
            &[("to".into(), AttrValue::DType(DType::I8))],
            &[],
            &[strings(&[1], &["x"])]
        )
        .is_err()
    );
}

#[test]
fn sequences() {
    let (a, b) = (ints(&[1, 2], &[1, 2]), ints(&[1, 2], &[3, 4]));
    let s = run("sequence_construct", &[], &[a.clone(), b.clone()]).remove(0);
    let at = |i: i64| ints(&[], &[i]);
    check("sequence_at", &[], &[s.clone(), at(-1)], &b);
    assert!(call("sequence_at", &[], &[], &[s.clone(), at(2)]).is_err());
    assert!(call("sequence_at", &[], &[], &[s.clone(), at(i64::MIN)]).is_err());
    check("sequence_length", &[], std::slice::from_ref(&s), &at(2));
    let t = run("sequence_insert", &[], &[s.clone(), b.clone(), at(0)]).remove(0);
    check("sequence_at", &[], &[t.clone(), at(0)], &b);
    let t = run("sequence_erase", &[], &[t, at(1)]).remove(0);
    let joined = run("sequence_concat", &[("axis", AttrValue::Int(0))], &[t]);
    assert!(joined[0].same(&ints(&[2, 2], &[3, 4, 3, 4])));
    let stacked = [("axis", AttrValue::Int(-1)), ("new_axis", AttrValue::Bool(true))];
    check("sequence_concat", &stacked, &[s], &ints(&[1, 2, 2], &[1, 3, 2, 4]));

    let x = ints(&[5, 1], &[0, 1, 2, 3, 4]);
    let parts = |v: &[HostValue]| match &v[0] {
        HostValue::Sequence(s) => {
            s.iter().map(|t| t.as_tensor().unwrap().shape().to_vec()).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let axis = [("axis", AttrValue::Int(0))];
    let two = run("sequence_from_split", &axis, &[x.clone(), at(2)]);
    assert_eq!(parts(&two), [[2, 1], [2, 1], [1, 1]]);
    let uneven = run("sequence_from_split", &axis, &[x.clone(), ints(&[2], &[1, 4])]);
    assert_eq!(parts(&uneven), [[1, 1], [4, 1]]);
    let dropped = run(
        "sequence_from_split",
        &[("axis", AttrValue::Int(0)), ("keep", AttrValue::Bool(false))],
        std::slice::from_ref(&x),
    );
    assert_eq!(parts(&dropped), [[1]; 5]);
    assert!(call("sequence_from_split", &[], &[], &[x.clone(), at(0)]).is_err());
    assert!(call("sequence_from_split", &[], &[], &[x, ints(&[2], &[1, 1])]).is_err());
}

#[test]
fn optionals() {
    let full = run("optional_construct", &[], &[ints(&[], &[5])]).remove(0);
    let empty = run("optional_construct", &[], &[]).remove(0);
    check("optional_has", &[], std::slice::from_ref(&full), &bools(&[], &[true]));
    check("optional_has", &[], std::slice::from_ref(&empty), &bools(&[], &[false]));
    check("optional_get", &[], &[full], &ints(&[], &[5]));
    assert!(call("optional_get", &[], &[], &[empty]).is_err());
}

/// No operation panics, whatever its operands.
#[test]
fn wrong_operands_are_errors() {
    let values = [
        ints(&[0], &[]),
        ints(&[2], &[i64::MIN, i64::MAX]),
        strings(&[0, 3], &[]),
        strings(&[], &["("]),
        HostValue::Sequence(vec![strings(&[1], &["x"]), ints(&[1], &[1])]),
        HostValue::Sequence(vec![]),
        HostValue::Optional(None),
    ];
    let attributes: Vec<Vec<(String, AttrValue)>> = vec![
        vec![],
        vec![
            ("axis".into(), AttrValue::Int(i64::MIN)),
            ("maxsplit".into(), AttrValue::Int(i64::MAX)),
            ("delimiter".into(), text("é")),
            ("pattern".into(), text("((")),
            ("to".into(), AttrValue::DType(DType::F4E2M1)),
            ("keys".into(), AttrValue::List(vec![AttrValue::Int(1)])),
        ],
    ];
    for name in NAMES {
        for a in &attributes {
            let _ = call(name, a, &[], &[]);
            for x in &values {
                let _ = call(name, a, &[], std::slice::from_ref(x));
                for y in &values {
                    let _ = call(name, a, &[], &[x.clone(), y.clone()]);
                    let _ = call(name, a, &[], &[x.clone(), y.clone(), x.clone()]);
                }
            }
        }
    }
    assert!(call("no such name", &[], &[], &[]).unwrap_err().to_string().contains("H001"));
}
