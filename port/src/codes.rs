//! The codes of findings.

/// A kind of finding.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// The stable code.
    pub code: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// Every kind of finding.
pub const CODES: &[Code] = &[
    Code {
        code: "M001",
        meaning: "The chip cannot run an operation of the model: it lacks an instruction or element type, and no shared rule makes it of others.",
        fix: "choose another element type for that part of the model, or another chip; `--allow-host` runs it on the host, and lists what is copied",
    },
    Code {
        code: "M002",
        meaning: "The front end cannot take an operator of the model, on any chip.",
        fix: "export the model with other operators in that place",
    },
    Code {
        code: "M003",
        meaning: "The chip does not compute in an element type of the model: it holds elements in it and converts around each operation, which costs time.",
        fix: "an element type that the chip computes in is faster; `tongtu chips show CHIP` lists them",
    },
    Code {
        code: "M004",
        meaning: "By an estimate a kernel needs more of a storage level than the chip has, even with the smallest tiles.",
        fix: "the chip's compiler decides: run `tongtu port` without `--check`",
    },
    Code {
        code: "M005",
        meaning: "Weights, activations and inputs do not fit the chip's memory.",
        fix: "use a smaller batch or sequence (`--dim NAME=SIZE`), or narrower weights",
    },
    Code {
        code: "M006",
        meaning: "The chip file does not say how much memory the chip has, so whether the model fits is not known.",
        fix: "add `capacity` with its source to the memory level of the chip file",
    },
    Code {
        code: "M007",
        meaning: "The chip file lacks figures, so there are kernels without a predicted time.",
        fix: "add `frequency`, `f32_flops_per_cycle`, `flops_per_cycle` of the matrix units and the `bandwidth` of the levels, each with its source",
    },
    Code {
        code: "M008",
        meaning: "Results of an operation differ from the reference by more than its contract allows.",
        fix: "report the operation with the model; `tongtu verify` shows the elements",
    },
    Code {
        code: "M009",
        meaning: "With `--allow-host`: the chip does not take a part of the model, which runs on the host. Its operands and results are copied in every run; the placement lists how many bytes.",
        fix: "where the copies cost too much, change the operations that are listed",
    },
    Code {
        code: "M010",
        meaning: "The model could not be compiled for the chip.",
        fix: "read the error beside it, which has a code of its own",
    },
    Code {
        code: "M011",
        meaning: "The model was compiled for the chip, but could not be run there.",
        fix: "read the error beside it, which has a code of its own",
    },
    Code {
        code: "M012",
        meaning: "There is neither a device nor a simulation of the chip here: the model was compiled, not proven.",
        fix: "run `tongtu port` on a machine with the chip",
    },
    Code {
        code: "M013",
        meaning: "Kernels were compared by the reference, which excludes nothing for some of their elements.",
        fix: "give real inputs with `--input` or `--data-set` in place of random ones",
    },
    Code {
        code: "M014",
        meaning: "The model leaves sizes open that were not given; they are taken to be as small as they may be.",
        fix: "give the sizes that you will run: `--dim NAME=SIZE`",
    },
    Code {
        code: "M015",
        meaning: "Operations were not looked at, because they need results of others that the front end cannot take and whose types the file does not declare.",
        fix: "mend the operations named first, or declare the types of their results in the file (`value_info`), and run `tongtu port` again",
    },
    Code {
        code: "M016",
        meaning: "Elements of an output are not numbers, on the chip as in the reference: with these inputs that the two agree proves little.",
        fix: "give real inputs with `--input` or `--data-set`, or sizes that the model is made for with `--dim NAME=SIZE`",
    },
];

/// What is said of a kind of finding.
pub(crate) fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code == code)
}
