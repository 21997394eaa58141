//! Values of dim symbols.

use tongtu_tensor::dim::{Dim, Sym, Symbols};

/// The values that symbols have at one time of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    values: Vec<Option<i64>>,
}

impl Bindings {
    /// Nothing bound.
    pub fn new() -> Bindings {
        Bindings::default()
    }
    /// The value of a symbol.
    pub fn get(&self, sym: Sym) -> Option<i64> {
        self.values.get(sym.0 as usize).copied().flatten()
    }
    /// Binds a symbol, or binds it anew.
    ///
    /// # Errors
    /// In words, if the module does not declare the symbol or the value is outside its bounds.
    pub fn bind(&mut self, symbols: &Symbols, sym: Sym, value: i64) -> Result<(), String> {
        let info = symbols.get(sym).ok_or_else(|| format!("symbol {} is not declared", sym.0))?;
        if value < info.lower || info.upper.is_some_and(|u| value > u) || value % info.multiple_of.max(1) != 0
        {
            let upper = info.upper.map_or("∞".to_string(), |u| u.to_string());
            return Err(format!(
                "'{}' would be {value}; it is declared to be in {}..{upper}, a multiple of {}",
                info.name, info.lower, info.multiple_of
            ));
        }
        let i = sym.0 as usize;
        if self.values.len() <= i {
            self.values.resize(symbols.len().max(i + 1), None);
        }
        self.values[i] = Some(value);
        Ok(())
    }
    /// The value of a dim.
    ///
    /// # Errors
    /// In words, if a symbol is not bound or the value does not fit.
    pub fn eval(&self, dim: &Dim, symbols: &Symbols) -> Result<i64, String> {
        if let Some(c) = dim.as_const() {
            return Ok(c);
        }
        dim.eval(&|s| self.get(s)).map_err(|e| format!("dim {}: {e}", dim.display(symbols)))
    }
    /// The value of a dim that is a length.
    ///
    /// # Errors
    /// As [`Bindings::eval`]; also if it is negative.
    pub fn len(&self, dim: &Dim, symbols: &Symbols) -> Result<usize, String> {
        let n = self.eval(dim, symbols)?;
        usize::try_from(n).map_err(|_| format!("dim {} would be {n}", dim.display(symbols)))
    }
    /// Lengths of all dims.
    ///
    /// # Errors
    /// As [`Bindings::len`].
    pub fn shape(&self, dims: &[Dim], symbols: &Symbols) -> Result<Vec<usize>, String> {
        dims.iter().map(|d| self.len(d, symbols)).collect()
    }
    /// Binds the dims that are symbols without a value to the lengths of a shape.
    ///
    /// # Errors
    /// In words, if the ranks differ or a length is outside its symbol's bounds.
    pub fn bind_shape(&mut self, dims: &[Dim], shape: &[usize], symbols: &Symbols) -> Result<(), String> {
        if dims.len() != shape.len() {
            return Err(format!("has {} dims, {} are declared", shape.len(), dims.len()));
        }
        for (d, &n) in dims.iter().zip(shape) {
            if let Some(s) = d.as_sym()
                && self.get(s).is_none()
            {
                self.bind(symbols, s, n as i64)?;
            }
        }
        Ok(())
    }
    /// Checks a shape against dims.
    ///
    /// # Errors
    /// In words, where they differ or a dim has no value.
    pub fn check_shape(&self, dims: &[Dim], shape: &[usize], symbols: &Symbols) -> Result<(), String> {
        for (d, &n) in dims.iter().zip(shape) {
            let want = self.eval(d, symbols)?;
            if i64::try_from(n).ok() != Some(want) {
                return Err(format!("a dim is {n}; {} is {want}", d.display(symbols)));
            }
        }
        Ok(())
    }
}
