//! The kernels, their sources, and how they are dispatched.

use crate::device::Buf;
use crate::error::GpuError;
use crate::weights::Format;
use crate::work::Work;

/// Widest head that the attention kernels take.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// Workgroups in one dimension of a dispatch, in the portable limits.
const MAX_GROUPS: u64 = 65_535;
/// At most so many rows take the kernel that splits K: it reads the weights again for each row.
const FEW_ROWS: usize = 4;

/// How the operands of a product lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// `A [m, k]`, `B [n, k]`.
    Nt,
    /// `A [m, k]`, `B [k, n]`.
    Nn,
    /// `A [k, m]`, `B [k, n]`.
    Tn,
}

/// A kernel, and what it is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Matmul(Form, Format),
    Matvec(Format),
    NormForward,
    NormBackward,
    Rope,
    SwigluForward,
    SwigluBackward,
    Copy,
    AttentionForward,
    AttentionQuery,
    AttentionKey,
}

impl Kernel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Matmul(..) => "matmul",
            Self::Matvec(_) => "matvec",
            Self::NormForward => "norm forward",
            Self::NormBackward => "norm backward",
            Self::Rope => "rope",
            Self::SwigluForward => "swiglu forward",
            Self::SwigluBackward => "swiglu backward",
            Self::Copy => "copy",
            Self::AttentionForward => "attention forward",
            Self::AttentionQuery => "attention backward, queries",
            Self::AttentionKey => "attention backward, keys",
        }
    }

    pub(crate) fn source(self) -> String {
        let norm = include_str!("wgsl/norm.wgsl");
        let attention = include_str!("wgsl/attention.wgsl");
        let product = include_str!("wgsl/product.wgsl");
        let elements = |body: &str| [body, include_str!("wgsl/elements.wgsl")].concat();
        match self {
            Self::Matmul(form, format) => {
                let constants = format!(
                    "const A_T: bool = {};\nconst B_T: bool = {};\n",
                    form == Form::Tn,
                    form == Form::Nt
                );
                let body = include_str!("wgsl/matmul.wgsl");
                [&constants, product, format.source(), body].concat()
            }
            Self::Matvec(format) => {
                let body = include_str!("wgsl/matvec.wgsl");
                [product, format.source(), body].concat()
            }
            Self::NormForward => [norm, include_str!("wgsl/norm_forward.wgsl")].concat(),
            Self::NormBackward => [norm, include_str!("wgsl/norm_backward.wgsl")].concat(),
            Self::Rope => elements(include_str!("wgsl/rope.wgsl")),
            Self::SwigluForward => elements(include_str!("wgsl/swiglu_forward.wgsl")),
            Self::SwigluBackward => elements(include_str!("wgsl/swiglu_backward.wgsl")),
            Self::Copy => elements(include_str!("wgsl/copy.wgsl")),
            Self::AttentionForward => {
                [attention, include_str!("wgsl/attention_forward.wgsl")].concat()
            }
            Self::AttentionQuery => [attention, include_str!("wgsl/attention_query.wgsl")].concat(),
            Self::AttentionKey => [attention, include_str!("wgsl/attention_key.wgsl")].concat(),
        }
    }
}

/// A matrix in a buffer: where it begins and how far its rows are apart, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) buf: &'a Buf,
    pub(crate) off: usize,
    pub(crate) stride: usize,
}

impl<'a> View<'a> {
    pub(crate) fn new(buf: &'a Buf, off: usize, stride: usize) -> Self {
        Self { buf, off, stride }
    }
}

/// `C [m, n] = alpha * op(A) op(B)`, plus C itself and plus `extra` if so wished.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    pub(crate) form: Form,
    pub(crate) a: View<'a>,
    pub(crate) b: View<'a>,
    pub(crate) format: Format,
    pub(crate) c: View<'a>,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) alpha: f32,
    /// Adds to C instead of replacing it.
    pub(crate) add: bool,
    /// A residual, or a bias with stride 0.
    pub(crate) extra: Option<View<'a>>,
}

impl Product<'_> {
    pub(crate) fn run(&self, work: &mut Work<'_>) -> Result<(), GpuError> {
        let flags = u32::from(self.add) + 2 * u32::from(self.extra.is_some());
        // `a` stands in where there is nothing to add: the kernel does not read it.
        let extra = self.extra.unwrap_or(self.a);
        let params = [
            self.m as u32,
            self.n as u32,
            self.k as u32,
            self.a.off as u32,
            self.a.stride as u32,
            self.b.off as u32,
            self.b.stride as u32,
            self.c.off as u32,
            self.c.stride as u32,
            flags,
            extra.off as u32,
            extra.stride as u32,
            self.alpha.to_bits(),
        ];
        let buffers = [self.a.buf, self.b.buf, extra.buf, self.c.buf];
        if self.form == Form::Nt && self.m <= FEW_ROWS && self.n as u64 <= MAX_GROUPS {
            let groups = [self.n, self.m];
            return work.run(Kernel::Matvec(self.format), &buffers, &params, groups);
        }
        let groups = [self.n.div_ceil(32), self.m.div_ceil(32)];
        let kernel = Kernel::Matmul(self.form, self.format);
        work.run(kernel, &buffers, &params, groups)
    }
}

/// `y = norm(x) * gain` of `rows` rows.
pub(crate) fn norm(
    work: &mut Work<'_>,
    x: &Buf,
    gain: &Buf,
    eps: f32,
    y: &Buf,
) -> Result<(), GpuError> {
    let params = [gain.words as u32, eps.to_bits()];
    let rows = y.words / gain.words;
    work.run(Kernel::NormForward, &[x, gain, y], &params, [rows, 1])
}

/// Adds to `dx` the gradient through [`norm`].
pub(crate) fn norm_backward(
    work: &mut Work<'_>,
    x: &Buf,
    gain: &Buf,
    eps: f32,
    dy: &Buf,
    dx: &Buf,
) -> Result<(), GpuError> {
    let params = [gain.words as u32, eps.to_bits()];
    let rows = dx.words / gain.words;
    work.run(Kernel::NormBackward, &[x, gain, dy, dx], &params, [rows, 1])
}

/// `y [rows, width] = silu(gate) * up`.
pub(crate) fn swiglu(
    work: &mut Work<'_>,
    gate_up: &Buf,
    width: usize,
    y: &Buf,
) -> Result<(), GpuError> {
    let params = [y.words as u32, width as u32];
    work.each(Kernel::SwigluForward, &[gate_up, y], &params)
}

/// Gradient of [`swiglu`].
pub(crate) fn swiglu_backward(
    work: &mut Work<'_>,
    gate_up: &Buf,
    width: usize,
    dy: &Buf,
    d_gate_up: &Buf,
) -> Result<(), GpuError> {
    let params = [dy.words as u32, width as u32];
    work.each(Kernel::SwigluBackward, &[gate_up, dy, d_gate_up], &params)
}

/// Copies `rows` rows of `width` elements; with a map, row i comes from row `map[i]`, or is zero if
/// that is the largest u32.
pub(crate) fn copy(
    work: &mut Work<'_>,
    from: View<'_>,
    to: View<'_>,
    rows: usize,
    width: usize,
    map: Option<&Buf>,
) -> Result<(), GpuError> {
    let params = [
        (rows * width) as u32,
        width as u32,
        from.off as u32,
        from.stride as u32,
        to.off as u32,
        to.stride as u32,
        u32::from(map.is_some()),
    ];
    let buffers = [from.buf, map.unwrap_or(from.buf), to.buf];
    work.each(Kernel::Copy, &buffers, &params)
}

/// An error when a dispatch has more groups than portable.
pub(crate) fn check_groups(groups: [usize; 2]) -> Result<(), GpuError> {
    let got = groups[0].max(groups[1]) as u64;
    if got <= MAX_GROUPS {
        return Ok(());
    }
    Err(GpuError::TooLarge {
        what: "workgroups of a dispatch",
        got,
        limit: MAX_GROUPS,
    })
}

/// Groups of 64 invocations for `count` elements, in two dimensions.
pub(crate) fn grid(count: u64) -> [usize; 2] {
    let groups = count.div_ceil(64).max(1);
    let x = groups.min(MAX_GROUPS);
    [x as usize, groups.div_ceil(x) as usize]
}
