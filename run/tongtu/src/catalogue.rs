//! The catalogue of errors: what each stable code means and what to do. `docs/errors.md` is made from it.

/// A kind of error.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The stable code.
    pub code: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// The stages that codes come from, by their letter.
pub const STAGES: &[(char, &str)] = &[
    ('A', "Library and command line"),
    ('B', "Back ends"),
    ('C', "Compiler"),
    ('D', "Dims"),
    ('E', "CPU back end"),
    ('F', "Chip files"),
    ('G', "Tensor graphs"),
    ('H', "Host library"),
    ('K', "Tile programs"),
    ('L', "Decoders from a configuration"),
    ('M', "Findings of `tongtu port`"),
    ('O', "ONNX files"),
    ('P', "Plans and bundles"),
    ('R', "Runs"),
    ('T', "Host tensors"),
    ('V', "Devices"),
    ('X', "Defects"),
];

const fn entry(code: &'static str, meaning: &'static str, fix: &'static str) -> Entry {
    Entry { code, meaning, fix }
}

const DEFECT: &str = "this is a defect of Tongtu: please report it with the command and the model";

/// Every error that is no finding of `tongtu port`, by code.
const ERRORS: &[Entry] = &[
    entry(
        "A001",
        "A file cannot be read or written.",
        "check the path, and that the file may be read or written",
    ),
    entry("A002", "A name that is no input of the model.", "`tongtu inspect MODEL` lists the inputs"),
    entry(
        "A003",
        "An input without a value.",
        "give it with `--input NAME=FILE`, or random numbers with `--input NAME=random:SHAPE`",
    ),
    entry("A004", "An input given twice.", "give each input once"),
    entry(
        "A005",
        "This build has no compiler for the chip.",
        "build with the feature `llvm`; `scripts/setup` installs LLVM 22",
    ),
    entry("A006", "An output that is not there.", "`tongtu inspect MODEL` lists the outputs"),
    entry(
        "A007",
        "A value that is no tensor of numbers where one is wanted.",
        "strings and sequences have no numbers: ask for another output",
    ),
    entry(
        "A008",
        "The process that measures a model ended early.",
        "run the model with `tongtu run` to see why; it may need more memory than there is",
    ),
    entry(
        "A010",
        "An input and an output that cannot be tied as state.",
        "an input and the output that replaces it have one type, or the output is the input with something appended",
    ),
    entry(
        "A011",
        "There is no such device on this machine, and no simulation of it.",
        "`tongtu compile --chip` compiles for it; `--simulate` runs a chip's simulation, where there is one",
    ),
    entry(
        "A012",
        "A machine that an agent or an emulator is, or should be, cannot be reached or failed.",
        "`tongtu devices` lists what can be reached; `scripts/setup --emulators` installs emulators",
    ),
    entry(
        "A013",
        "A model without weights, where they are needed.",
        "`tongtu port MODEL --to CHIP --check` needs no weights; put the files with the weights beside the model for the rest",
    ),
    entry(
        "A014",
        "A model of which parts were compiled for the host, because the chip does not take them.",
        "`--allow-host` runs them there, and says what is copied",
    ),
    entry(
        "B001",
        "An instruction that the chip lacks.",
        "`--allow-host` runs it on the host, and says what is copied; `tongtu port MODEL --to CHIP --check` lists everything that the chip cannot do",
    ),
    entry(
        "B002",
        "A tile or its working set does not fit; the schedule should choose smaller tiles.",
        "fix sizes with `--fix NAME=SIZE`, or report the model: smaller tiles should have been chosen",
    ),
    entry(
        "B003",
        "A tool or library that compiles for the chip is not installed.",
        "`tongtu toolchain install` installs the compilers of vendors, `scripts/setup` LLVM; `tongtu doctor` shows what is there",
    ),
    entry("B004", "The back end failed on a verified module: a defect, with the tool's own words.", DEFECT),
    entry(
        "C001",
        "A schedule wrote a tile program that its verifier refuses: a defect of the compiler.",
        DEFECT,
    ),
    entry(
        "C002",
        "The back end refused a kernel.",
        "the back end's own error, beside it, has a code with a fix",
    ),
    entry(
        "C003",
        "An operation that no schedule covers.",
        "fix sizes with `--fix NAME=SIZE`, or export the model with other operators in that place",
    ),
    entry("C004", "Several parts of a model that do not compile.", "each of them has a code with a fix"),
    entry(
        "D001",
        "A symbol of a dim in a file is malformed.",
        "make the bundle again with `tongtu compile MODEL -o FILE`",
    ),
    entry("D002", "A value, or an intermediate one, does not fit.", "give smaller sizes"),
    entry("D003", "A symbol without a value.", DEFECT),
    entry(
        "D004",
        "Division or modulo by zero.",
        "sizes of 0 may be the cause: `tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "D005",
        "The expression grew past its size limit and was dropped.",
        "fix sizes of the inputs when the model is compiled: `--fix NAME=SIZE`",
    ),
    entry("D006", "Text that is no dim.", "write dims as in `n`, `2*n + 1`, `floordiv(n, 2)`"),
    entry("E001", "The CPU back end does not compile for this chip.", "`tongtu chips` lists the chips"),
    entry("E002", "LLVM refused a module.", DEFECT),
    entry("E003", "Machine code needs something from outside itself.", DEFECT),
    entry("E004", "The object file that LLVM wrote is not of the expected form.", DEFECT),
    entry(
        "E005",
        "An artifact is damaged, or of another version.",
        "make the bundle again with `tongtu compile MODEL -o FILE`",
    ),
    entry(
        "E006",
        "An artifact needs an instruction set feature that this machine lacks.",
        "compile the model again on, or for, this machine",
    ),
    entry("E007", "There is no kernel of this name in an artifact.", DEFECT),
    entry("E008", "A launch does not fit the kernel's parameters or limits.", DEFECT),
    entry("E009", "The operating system refused something.", "the system's words stand in the message"),
    entry("E010", "A function run by the thread pool panicked.", DEFECT),
    entry(
        "E011",
        "An artifact is for another architecture.",
        "compile the model again on, or for, this machine",
    ),
    entry(
        "E012",
        "An artifact is made for another vector length than this machine has.",
        "compile for a chip with its length: `tongtu chips` lists them",
    ),
    entry(
        "F001",
        "A chip file is not TOML of the expected form.",
        "compare it with the files under `chips/`",
    ),
    entry("F002", "No chip has this name.", "`tongtu chips` lists the chips"),
    entry("F003", "A number in a chip file makes no sense.", "correct the field that the message names"),
    entry(
        "F004",
        "There is no description for machines like this one.",
        "name a chip with `--chip`; `tongtu chips` lists them",
    ),
    entry("G001", "An operation was given the wrong number of operands.", DEFECT),
    entry(
        "G002",
        "An operand has a type that the operation does not take.",
        "another element type in that place of the model",
    ),
    entry(
        "G003",
        "Dims or attributes do not fit together.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "G004",
        "The graph's structure is broken: a value used before its definition, defined twice, unknown, an unbound symbol.",
        DEFECT,
    ),
    entry(
        "G005",
        "The text form could not be read.",
        "correct the text at that place; `docs/ops.md` lists the operations",
    ),
    entry(
        "G006",
        "Evaluation failed: a bound symbol out of bounds, an unreasonable size, a host operation's own error.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry("H001", "No operation has the name.", "make the bundle again with this version"),
    entry("H002", "An operand or attribute is missing or of the wrong kind.", DEFECT),
    entry(
        "H003",
        "A position outside a sequence, text that is no number, lengths that do not fit.",
        "the strings or sequences given are not what the model expects",
    ),
    entry(
        "H004",
        "A result can't be made.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "K001",
        "Operands, attributes or types of an instruction break its rule.",
        "correct the program by the instruction's rule in `docs/isa/instructions.md`",
    ),
    entry(
        "K002",
        "The program's structure is broken: a value used where it is not defined, or defined twice.",
        "correct the program: every value is defined once, before it is used",
    ),
    entry(
        "K003",
        "The text form could not be read.",
        "correct the text at that place; `docs/isa/text.md` gives the form",
    ),
    entry(
        "K004",
        "Interpretation failed: a launch that does not fit the kernel, or a step limit.",
        "launch the kernel with arguments of its parameters' types",
    ),
    entry(
        "K005",
        "A program of a version that is not read here.",
        "use the version of Tongtu that the program was written for, or write it anew",
    ),
    entry("K006", "The binary form could not be read.", "the file is damaged: write it anew"),
    entry("L001", "The operating system refused.", "check the path, and that the file may be read"),
    entry(
        "L002",
        "Not JSON, or a key is missing or makes no sense.",
        "give the `config.json` of the checkpoint as it was published",
    ),
    entry(
        "L003",
        "An architecture, or a use of it, that is not known.",
        "export the model to ONNX and give that",
    ),
    entry(
        "L004",
        "The tensor graph refuses an operation.",
        "the sizes of the configuration do not fit together",
    ),
    entry("L005", "A weight too large for any machine.", "check the sizes of the configuration"),
    entry("O001", "The operating system refused.", "check the path, and that the file may be read"),
    entry("O002", "Not protobuf, or cut short or damaged.", "is the file complete, and is it an ONNX file?"),
    entry(
        "O003",
        "Larger or deeper than any real model.",
        "is the file an ONNX file that a known exporter wrote?",
    ),
    entry(
        "O004",
        "Readable, but no model: a name without definition, a cycle, a missing part.",
        "export the model anew, and check it with the exporter's own checker",
    ),
    entry(
        "O005",
        "A tensor whose parts contradict each other.",
        "export the model anew: the file is damaged",
    ),
    entry(
        "O006",
        "A tensor kept in another file that is missing, too short or outside the model's folder.",
        "keep the model's data files in the model's folder; `tongtu port --check` needs only shapes",
    ),
    entry(
        "O007",
        "Operations, or uses of them, that are not supported; all of the model's.",
        "export the model with other operators in that place; `tongtu inspect MODEL` lists all operators of the model",
    ),
    entry(
        "O008",
        "A node that breaks the rules of its operator, or needs the contents of an input to be known.",
        "give the input that the message names with `--input`, or export the model anew",
    ),
    entry(
        "O009",
        "Several nodes that can't be taken.",
        "give the inputs that the message names with `--input`, or export the model anew",
    ),
    entry(
        "O010",
        "A dim override that names no dim of the model's inputs.",
        "`tongtu inspect MODEL` lists the dims",
    ),
    entry(
        "O011",
        "The tensor graph refuses an operation.",
        "the node's operands do not fit together: export the model anew",
    ),
    entry("O012", "A host tensor can't be made.", "export the model anew: the file is damaged"),
    entry("P001", "A plan that contradicts itself: a defect of whoever made it.", DEFECT),
    entry(
        "P101",
        "The operating system refused.",
        "check the path, and that the file may be read or written",
    ),
    entry("P102", "Not a bundle at all.", "make the bundle again with `tongtu compile MODEL -o FILE`"),
    entry(
        "P103",
        "Written by a newer or older format.",
        "make the bundle again with `tongtu compile MODEL -o FILE`",
    ),
    entry(
        "P104",
        "Shorter or longer than its header says.",
        "make the bundle again with `tongtu compile MODEL -o FILE`",
    ),
    entry("P105", "A checksum does not match.", "make the bundle again with `tongtu compile MODEL -o FILE`"),
    entry(
        "P106",
        "The metadata does not have the form it should.",
        "make the bundle again with `tongtu compile MODEL -o FILE`",
    ),
    entry(
        "P107",
        "The plan in it is inconsistent.",
        "make the bundle again with `tongtu compile MODEL -o FILE`",
    ),
    entry(
        "P108",
        "A constant cannot be written or read.",
        "make the bundle again with `tongtu compile MODEL -o FILE`",
    ),
    entry(
        "R001",
        "Not as many inputs as the model takes.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "R002",
        "An input of another element type, or no tensor where one is wanted.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "R003",
        "An input of another rank.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "R004",
        "A dim of an input that does not fit.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "R005",
        "A symbol out of the range that it was declared with.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "R006",
        "Something the model assumes of its sizes does not hold.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry(
        "R007",
        "A size cannot be computed.",
        "fix sizes of the inputs when the model is compiled: `--fix NAME=SIZE`",
    ),
    entry(
        "R009",
        "An operation of the host library failed.",
        "the strings or sequences given are not what the model expects",
    ),
    entry("R010", "The plan asks for something that makes no sense: a defect of whoever made it.", DEFECT),
    entry(
        "R011",
        "A device tensor that cannot be used here.",
        "make the device tensor on the device of the session, with the type and dims of the input",
    ),
    entry(
        "R012",
        "A plan for more devices than were given.",
        "give the session as many devices as the plan uses",
    ),
    entry(
        "R013",
        "A negative or absurd size.",
        "`tongtu inspect MODEL` shows the model's inputs with their types and dims; `--dim NAME=SIZE` sets one",
    ),
    entry("R014", "A result that is not of the type the plan says.", DEFECT),
    entry("R015", "A host tensor could not be made.", "give smaller sizes: there may not be enough memory"),
    entry(
        "R016",
        "A device tensor is in use by another run.",
        "give each run at a time a device tensor of its own",
    ),
    entry("R017", "While a model was verified: an operand was overwritten before it was read.", DEFECT),
    entry(
        "R018",
        "While a model was verified: a kernel was not launched although its results have elements.",
        DEFECT,
    ),
    entry(
        "T001",
        "The product of the dims, or its size in bytes, does not fit the address space.",
        "give smaller sizes",
    ),
    entry(
        "T002",
        "The data does not hold exactly the elements the shape asks for.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T003",
        "A typed access to a tensor of another element type.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T004",
        "A typed slice of a tensor whose elements are not one dense row-major run.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T005",
        "A typed slice of storage that is not aligned for the type.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T006",
        "An axis past the rank.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T007",
        "A permutation that does not name every axis once.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T008",
        "A slice that leaves the axis, or has a step of zero.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T009",
        "A shape that cannot be had from another by broadcasting or reshaping.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T010",
        "A byte of a bool tensor that is neither 0 nor 1.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T011",
        "A value that the target type cannot hold.",
        "this is a wrong use of the library: check types and shapes before the call",
    ),
    entry(
        "T012",
        "A `.npy` or `.npz` file that is damaged or not one at all.",
        "write the file again with NumPy, in a type that `docs/isa/types.md` lists",
    ),
    entry(
        "T013",
        "A `.npy` file of an element type that has no counterpart here.",
        "write the file again with NumPy, in a type that `docs/isa/types.md` lists",
    ),
    entry("T014", "The operating system refused.", "check the path, and that the file may be read"),
    entry(
        "T015",
        "A damaged zip archive.",
        "write the file again with NumPy, in a type that `docs/isa/types.md` lists",
    ),
    entry(
        "T020",
        "A string that names no element type.",
        "the types are f64 f32 f16 bf16, i8 to i64, u8 to u64, bool and the narrow ones in `docs/isa/types.md`",
    ),
    entry(
        "V001",
        "Out of memory.",
        "use a smaller batch or sequence, or a device with more memory; `tongtu port --check` says how much is needed",
    ),
    entry(
        "V002",
        "An artifact is corrupt, of another back end or needs features that the device lacks.",
        "compile the model again on, or for, this machine",
    ),
    entry("V003", "A launch does not fit its kernel.", DEFECT),
    entry(
        "V004",
        "The device is gone, its driver failed, or it is not there.",
        "`tongtu doctor` shows what is installed; the driver's own words stand in the message",
    ),
    entry("X001", "A defect of Tongtu itself.", DEFECT),
];

/// Every kind of error and finding, by code.
pub fn entries() -> Vec<Entry> {
    let findings = tongtu_port::codes::CODES.iter().map(|c| entry(c.code, c.meaning, c.fix));
    let mut all: Vec<Entry> = ERRORS.iter().copied().chain(findings).collect();
    all.sort_by_key(|e| e.code);
    all
}

/// What is known of a code.
pub fn find(code: &str) -> Option<Entry> {
    entries().into_iter().find(|e| e.code == code)
}

/// The page of the documentation.
pub fn page() -> String {
    let mut out = String::from(
        "# Errors\n\nEvery error has a stable code: a letter for the stage that it comes from, and a number. This page is made from the table in\n\
         `run/tongtu/src/catalogue.rs`, which the program's own advice comes from too.\n",
    );
    let all = entries();
    for (letter, stage) in STAGES {
        out.push_str(&format!("\n## {letter}: {stage}\n\n| code | meaning | what to do |\n|---|---|---|\n"));
        for e in all.iter().filter(|e| e.code.starts_with(*letter)) {
            out.push_str(&format!("| {} | {} | {} |\n", e.code, e.meaning, e.fix));
        }
    }
    out
}
