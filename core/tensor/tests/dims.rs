//! The algebra of symbolic dims: against plain evaluation of random expressions, and by example.

use proptest::prelude::*;
use tongtu_tensor::{Dim, DimError, DimView, Sym, Symbols};

/// An expression as written, before any simplification.
#[derive(Clone, Debug)]
enum Expr {
    Const(i64),
    Sym(u32),
    Add(Box<Expr>, Box<Expr>),
    Sub(Box<Expr>, Box<Expr>),
    Mul(Box<Expr>, Box<Expr>),
    FloorDiv(Box<Expr>, Box<Expr>),
    CeilDiv(Box<Expr>, Box<Expr>),
    Mod(Box<Expr>, Box<Expr>),
    Min(Box<Expr>, Box<Expr>),
    Max(Box<Expr>, Box<Expr>),
}

const SYMBOLS: u32 = 3;

impl Expr {
    fn dim(&self) -> Dim {
        match self {
            Expr::Const(c) => Dim::from(*c),
            Expr::Sym(s) => Dim::sym(Sym(*s)),
            Expr::Add(a, b) => a.dim() + b.dim(),
            Expr::Sub(a, b) => a.dim() - b.dim(),
            Expr::Mul(a, b) => a.dim() * b.dim(),
            Expr::FloorDiv(a, b) => a.dim().floordiv(&b.dim()),
            Expr::CeilDiv(a, b) => a.dim().ceildiv(&b.dim()),
            Expr::Mod(a, b) => a.dim().modulo(&b.dim()),
            Expr::Min(a, b) => a.dim().min(&b.dim()),
            Expr::Max(a, b) => a.dim().max(&b.dim()),
        }
    }

    /// The value as written; `None` if it divides by zero or grows past what stays exact everywhere.
    fn eval(&self, values: &[i64]) -> Option<i128> {
        let pair = |a: &Expr, b: &Expr| Some((a.eval(values)?, b.eval(values)?));
        let floor = |a: i128, b: i128| {
            let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
            Some(if rest != 0 && (rest < 0) != (b < 0) { quotient - 1 } else { quotient })
        };
        let value = match self {
            Expr::Const(c) => (*c).into(),
            Expr::Sym(s) => values[*s as usize].into(),
            Expr::Add(a, b) => pair(a, b).map(|(a, b)| a + b)?,
            Expr::Sub(a, b) => pair(a, b).map(|(a, b)| a - b)?,
            Expr::Mul(a, b) => pair(a, b).map(|(a, b)| a * b)?,
            Expr::FloorDiv(a, b) => pair(a, b).and_then(|(a, b)| floor(a, b))?,
            Expr::CeilDiv(a, b) => pair(a, b).and_then(|(a, b)| Some(-floor(-a, b)?))?,
            Expr::Mod(a, b) => pair(a, b).and_then(|(a, b)| Some(a - b * floor(a, b)?))?,
            Expr::Min(a, b) => pair(a, b).map(|(a, b)| a.min(b))?,
            Expr::Max(a, b) => pair(a, b).map(|(a, b)| a.max(b))?,
        };
        Some(value).filter(|v| v.abs() < 1 << 50)
    }
}

fn expr() -> impl Strategy<Value = Expr> {
    expr_of_depth(5)
}

fn expr_of_depth(depth: u32) -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        3 => (0..SYMBOLS).prop_map(Expr::Sym),
        2 => (-4i64..20).prop_map(Expr::Const),
        1 => prop_oneof![Just(16i64), Just(-16), Just(64), Just(1 << 10)].prop_map(Expr::Const),
    ];
    leaf.prop_recursive(depth, 40, 2, |inner| {
        let pair = (inner.clone(), inner).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
        (0..12u8, pair).prop_map(|(op, (a, b))| match op {
            0..3 => Expr::Add(a, b),
            3 => Expr::Sub(a, b),
            4..6 => Expr::Mul(a, b),
            6 | 7 => Expr::FloorDiv(a, b),
            8 => Expr::CeilDiv(a, b),
            9 => Expr::Mod(a, b),
            10 => Expr::Min(a, b),
            _ => Expr::Max(a, b),
        })
    })
}

/// Ranges of three symbols, and values within them.
fn ranges() -> impl Strategy<Value = (Symbols, Vec<i64>)> {
    let one = (0i64..6, prop::option::of(0i64..40), 0i64..100, 1i64..5);
    prop::collection::vec(one, SYMBOLS as usize).prop_map(|specs| {
        let mut symbols = Symbols::new();
        let mut values = Vec::new();
        for (i, (low, extent, pick, multiple)) in specs.into_iter().enumerate() {
            let sym = symbols.fresh(&format!("n{i}"));
            let (low, extent) = (low * multiple, extent.map(|e| e * multiple));
            symbols.set_bounds(sym, low, extent.map(|e| low + e));
            symbols.set_multiple_of(sym, multiple);
            values.push(low + pick * multiple % (extent.unwrap_or(1 << 10) + multiple));
        }
        (symbols, values)
    })
}

fn bind(values: &[i64]) -> impl Fn(Sym) -> Option<i64> + '_ {
    |sym| values.get(sym.0 as usize).copied()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn simplified_equals_naive(e in expr(), (_, values) in ranges()) {
        if let Some(want) = e.eval(&values) {
            let dim = e.dim();
            prop_assert_eq!(dim.eval(&bind(&values)), Ok(want as i64), "{:?} as {:?}", e, dim);
        }
    }

    #[test]
    fn text_and_serde_round_trip(e in expr(), (mut symbols, _) in ranges()) {
        let dim = e.dim();
        let text = dim.display(&symbols).to_string();
        prop_assert_eq!(&Dim::parse(&text, &mut symbols).unwrap(), &dim, "{}", text);
        prop_assert_eq!(symbols.len(), SYMBOLS as usize);
        let json = serde_json::to_string(&dim).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Dim>(&json).unwrap(), &dim, "{}", json);
    }

    #[test]
    fn view_rebuilds(e in expr()) {
        fn rebuild(dim: &Dim) -> Dim {
            let all = |items: Vec<Dim>| items.iter().map(rebuild).collect::<Vec<_>>();
            match dim.view() {
                DimView::Const(c) => Dim::from(c),
                DimView::Sym(s) => Dim::sym(s),
                DimView::Add(items) => all(items).into_iter().sum(),
                DimView::Mul(items) => all(items).into_iter().product(),
                DimView::FloorDiv(a, b) => rebuild(&a).floordiv(&rebuild(&b)),
                DimView::Mod(a, b) => rebuild(&a).modulo(&rebuild(&b)),
                DimView::Min(items) => Dim::min_of(all(items)),
                DimView::Max(items) => Dim::max_of(all(items)),
                DimView::TooComplex => dim.clone(),
            }
        }
        let dim = e.dim();
        prop_assert_eq!(rebuild(&dim), dim);
    }

    #[test]
    fn bounds_hold(e in expr(), (symbols, values) in ranges()) {
        if let Some(value) = e.eval(&values) {
            let (low, high) = e.dim().bounds(&symbols);
            prop_assert!(low.is_none_or(|l| i128::from(l) <= value), "{:?} below {:?}", value, low);
            prop_assert!(high.is_none_or(|h| value <= i128::from(h)), "{:?} above {:?}", value, high);
        }
    }

    #[test]
    fn proofs_hold(a in expr(), b in expr(), (symbols, values) in ranges()) {
        let (x, y) = (a.dim(), b.dim());
        if let (Some(u), Some(v)) = (a.eval(&values), b.eval(&values)) {
            prop_assert!(!x.provably_le(&y, &symbols) || u <= v, "{:?} <= {:?}", x, y);
            prop_assert!(!x.provably_eq(&y, &symbols) || u == v, "{:?} == {:?}", x, y);
            if v != 0 {
                prop_assert!(!x.provably_divisible_by(&y, &symbols) || u % v == 0, "{:?} % {:?}", x, y);
            }
        }
        prop_assert!(x.provably_eq(&x, &symbols) && x.provably_le(&x, &symbols));
    }

    #[test]
    fn substitution_commutes_with_evaluation(e in expr(), inner in expr(), (_, values) in ranges()) {
        let Some(value) = inner.eval(&values) else { return Ok(()) };
        let mut replaced = values.clone();
        replaced[0] = value as i64;
        if let Some(want) = e.eval(&replaced) {
            let dim = e.dim().substitute(&|sym| (sym == Sym(0)).then(|| inner.dim()));
            prop_assert_eq!(dim.eval(&bind(&values)), Ok(want as i64));
        }
    }

    #[test]
    fn polynomials_are_canonical(a in expr_of_depth(2), b in expr_of_depth(2), c in expr_of_depth(2)) {
        let (a, b, c) = (a.dim(), b.dim(), c.dim());
        prop_assert_eq!(&a + &b, &b + &a);
        prop_assert_eq!(&a * &b, &b * &a);
        prop_assert_eq!((&a + &b) + &c, &a + &(&b + &c));
        prop_assert_eq!((&a * &b) * &c, &a * &(&b * &c));
        prop_assert_eq!(&a * &(&b + &c), &a * &b + &a * &c);
        prop_assert_eq!(&a - &a, Dim::from(0));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ns01 (),+*/%-]{0,40}|.{0,20}") {
        let _ = Dim::parse(&text, &mut Symbols::new());
    }
}

fn parse(text: &str, symbols: &mut Symbols) -> Dim {
    Dim::parse(text, symbols).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn simplifies() {
    let symbols = &mut Symbols::new();
    let cases = [
        ("batch*4 + 1", "(batch*4 + 1)"),
        ("1 + 4*batch", "(batch*4 + 1)"),
        ("n - n", "0"),
        ("n*0 + 3", "3"),
        ("(n + 1)*(n - 1)", "(n*n - 1)"),
        ("2*n - 2*(n - m) - m*2", "0"),
        ("floordiv(n*m*6, n*3)", "m*2"),
        ("(n*4)//4", "n"),
        ("floordiv(n + 16, 16)", "(floordiv(n, 16) + 1)"),
        ("floordiv(n*4 + 6, 8)", "ceildiv(n, 2)"),
        ("floordiv(floordiv(n, 2) + 1, 2)", "floordiv(n + 2, 4)"),
        ("floordiv(n*m + k, n)", "(m + floordiv(k, n))"),
        ("floordiv((n + 1)*m, n + 1)", "m"),
        ("floordiv(n, -2)", "(-n + floordiv(n, 2))"),
        ("floordiv(n*n - 1, n + 1)", "(n - 1)"),
        ("ceildiv(n, 16)", "ceildiv(n, 16)"),
        ("floordiv(n + 15, 16)", "ceildiv(n, 16)"),
        ("ceildiv(n, m)", "ceildiv(n, m)"),
        ("ceildiv(n*16, 16)", "n"),
        ("floordiv(n, 1)", "n"),
        ("floordiv(0, n)", "0"),
        ("mod(n, 1)", "0"),
        ("mod(n*8, 4)", "0"),
        ("mod(n*6 + 5, 4)", "(mod(n, 2)*2 + 1)"),
        ("mod(mod(n, 32), 8)", "mod(n, 8)"),
        ("mod(n + 9, 8)", "mod(n + 1, 8)"),
        ("min(n, n)", "n"),
        ("min(n, n + 3)", "n"),
        ("max(n, n + 3, m)", "max(n + 3, m)"),
        ("max(4, n, 7)", "max(7, n)"),
        ("min(3, 5)", "3"),
        ("max(max(n, m), k)", "max(n, m, k)"),
        ("-7 // 2", "-4"),
        ("-7 % 2", "1"),
        ("7 % -2", "-1"),
        ("-(n - m)", "(-n + m)"),
        ("--n", "n"),
        ("-9223372036854775808", "-9223372036854775808"),
    ];
    for name in ["batch", "n", "m", "k"] {
        symbols.fresh(name);
    }
    for (text, want) in cases {
        let (have, want_dim) = (parse(text, symbols), parse(want, symbols));
        assert_eq!(have, want_dim, "{text}");
        let printed = have.display(symbols).to_string();
        // The order of max's operands is that of the symbols.
        assert!(printed == want || want.starts_with("max"), "{text} prints {printed}");
    }
}

#[test]
fn proves() {
    let symbols = &mut Symbols::new();
    let cases = [
        ("min(n, 16)", "16"),
        ("min(n, 16)", "n"),
        ("n", "max(n, 16)"),
        ("floordiv(n, 2)", "n"),
        ("floordiv(n, 2)*2", "n"),
        ("n", "ceildiv(n, 16)*16"),
        ("ceildiv(n, 16)*16", "n + 15"),
        ("mod(n, 8)", "7"),
        ("mod(n, 8)", "n"),
        ("n", "n + m"),
        ("n - min(n, m)", "n"),
        ("floordiv(n, 4) + 1", "n + 1"),
        ("n", "n*b"),
    ];
    for (low, high) in cases {
        let (low, high) = (parse(low, symbols), parse(high, symbols));
        let b = symbols.intern("b");
        symbols.set_bounds(b, 1, Some(64));
        let proved = low.provably_le(&high, symbols);
        // The last needs the correlation of n*b with n, which intervals do not see.
        let expected = high != parse("n*b", symbols);
        assert_eq!(proved, expected, "{low:?} <= {high:?}");
    }
    let equal = [("n - mod(n, 8)", "floordiv(n, 8)*8"), ("mod(n, 4) + 4*floordiv(n, 4)", "n")];
    for (a, b) in equal {
        assert!(parse(a, symbols).provably_eq(&parse(b, symbols), symbols), "{a} == {b}");
    }
    let h = symbols.intern("h");
    symbols.set_multiple_of(h, 64);
    for (text, by) in
        [("h", 64), ("h + 128", 32), ("h*n", 64), ("n*6 + 9", 3), ("h*h", 4096), ("n - mod(n, 8)", 8)]
    {
        assert!(parse(text, symbols).provably_divisible_by(&by.into(), symbols), "{text} by {by}");
    }
    for (text, by) in [("n", 2), ("h + 8", 64), ("n", 0)] {
        assert!(!parse(text, symbols).provably_divisible_by(&by.into(), symbols), "{text} by {by}");
    }
    let bounded = parse("b*2 - 1", symbols);
    assert_eq!(bounded.bounds(symbols), (Some(1), Some(127)));
    assert_eq!(parse("n + 1", symbols).bounds(symbols), (Some(1), None));
    assert_eq!(parse("floordiv(100, b)", symbols).bounds(symbols), (Some(1), Some(100)));
}

#[test]
fn evaluation_reports_errors() {
    let symbols = &mut Symbols::new();
    let n = symbols.fresh("n");
    let at = |value: i64| move |_: Sym| Some(value);
    assert_eq!(parse("n + 1", symbols).eval(&|_| None), Err(DimError::Unbound(n)));
    assert_eq!(parse("4 // n", symbols).eval(&at(0)), Err(DimError::ZeroDivisor));
    assert_eq!(parse("4 % n", symbols).eval(&at(0)), Err(DimError::ZeroDivisor));
    assert_eq!(parse("n // 0", symbols).eval(&at(1)), Err(DimError::ZeroDivisor));
    assert_eq!(parse("n*n*n", symbols).eval(&at(1 << 40)), Err(DimError::Overflow));
    assert_eq!(parse("n + 1", symbols).eval(&at(i64::MAX)), Err(DimError::Overflow));
    assert_eq!(parse("n // -1", symbols).eval(&at(i64::MIN)), Err(DimError::Overflow));
    assert_eq!(parse("n*4 - n*3", symbols).eval(&at(i64::MAX)), Ok(i64::MAX));
}

#[test]
fn coefficients_that_overflow_stay_right() {
    let symbols = &mut Symbols::new();
    symbols.fresh("n");
    for text in [
        "9223372036854775807 + 1",
        "9223372036854775807*n*2",
        "n*n*3000000000 * 4000000000*n",
        "-9223372036854775808 * -1",
    ] {
        let dim = parse(text, symbols);
        assert_eq!(parse(&dim.display(symbols).to_string(), symbols), dim, "{text}");
        assert_eq!(dim.eval(&|_| Some(1)), Err(DimError::Overflow), "{text}");
    }
    assert_eq!(parse("9223372036854775807*n*2", symbols).eval(&|_| Some(0)), Ok(0));
}

#[test]
fn growth_is_limited() {
    let n = Dim::sym(Sym(0));
    let mut deep = n.clone();
    let mut wide = n.clone();
    let mut product = n.clone();
    for i in 0..10_000 {
        deep = (&deep * 3 + 1).floordiv(&Dim::from(2 + i % 3));
        wide = (&wide * 3 + 1).floordiv(&(&wide + 2)) + Dim::sym(Sym(i as u32));
        product = &product * &(&product + i);
    }
    for dim in [deep, wide, product] {
        assert_eq!(dim.eval(&|_| Some(1)), Err(DimError::TooComplex), "{dim:?}");
        assert_eq!(&dim - &dim, Dim::from(0));
        assert_eq!(dim.bounds(&Symbols::new()), (None, None));
        let json = serde_json::to_string(&dim).unwrap();
        assert_eq!(serde_json::from_str::<Dim>(&json).unwrap(), dim);
    }
    let nested = "(".repeat(100_000) + "n" + &")".repeat(100_000);
    assert!(Dim::parse(&nested, &mut Symbols::new()).is_err());
    let many = |open: &str, separator: &str, close: &str| {
        let items: Vec<String> = (0..20_000).map(|i| format!("n{i}")).collect();
        Dim::parse(&format!("{open}{}{close}", items.join(separator)), &mut Symbols::new()).unwrap()
    };
    for dim in [many("", " + ", ""), many("", "*", ""), many("min(", ", ", ")")] {
        assert_eq!(dim.eval(&|_| Some(1)), Err(DimError::TooComplex));
    }
    // A proof that has very many cases is given up.
    let hard = (0..300).map(|i| Dim::sym(Sym(i)).min(&Dim::sym(Sym(i + 1)))).sum::<Dim>();
    assert!(!Dim::from(1).provably_le(&hard, &Symbols::new()));
    assert!(Dim::parse(&("-".repeat(100_000) + "n"), &mut Symbols::new()).is_ok());
}

#[test]
fn symbol_tables() {
    let mut symbols = Symbols::new();
    let n = symbols.fresh("n");
    let other = symbols.fresh("n");
    assert_eq!((symbols.name(n), symbols.name(other)), (Some("n"), Some("n_1")));
    assert_eq!(symbols.lookup("n"), Some(n));
    let odd = symbols.fresh("past seq+1");
    assert_eq!(symbols.name(odd), Some("past_seq_1"));
    let reserved = symbols.fresh("max");
    let text = (Dim::sym(odd) + Dim::sym(reserved)).display(&symbols).to_string();
    assert_eq!(Dim::parse(&text, &mut symbols.clone()), Ok(Dim::sym(odd) + Dim::sym(reserved)));
    symbols.set_bounds(n, 1, Some(8));
    let json = serde_json::to_string(&symbols).unwrap();
    assert_eq!(serde_json::from_str::<Symbols>(&json).unwrap(), symbols);
    assert!(serde_json::from_str::<Symbols>(&json.replace("n_1", "n")).is_err());
    assert!(serde_json::from_str::<Dim>("\"n\"").is_err());
}
