//! The methods of the table.

use lethe_learn::balance::{BalanceParams, Exponent};
use lethe_proto::packed::PackedFormat;
use lethe_proto::payload::WireFormat;

use crate::population::Kind;

/// What PPLR's cosine between clients is taken of; always of the change in a round, since the
/// common start would dominate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cosine {
    /// Both factors.
    Both,
    /// B alone.
    B,
    /// The product.
    Product,
}

/// How clients' results become what they start from next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// No federation: everything in one place.
    Central,
    /// No federation: every client alone.
    Alone,
    /// FedAvg (McMahan et al., AISTATS 2017): A and B averaged, weights by samples.
    Average,
    /// The same with weights by samples times loss to this power (after q-FFL; Li et al., ICLR
    /// 2020): who is served badly counts more.
    Fair(f64),
    /// PPLR (arXiv 2402.09959), every client with parameters of its own.
    Personal(BalanceParams, Cosine),
    /// PPLR's weights for one shared adapter.
    Shared(BalanceParams, Cosine),
    /// FedEx-LoRA (Singhal et al., ACL 2025): FedAvg, and what the product of means lacks to the
    /// mean of products goes into the frozen weights. Departure: kept as factors and, where these
    /// would outgrow rank 128, cut to rank 64.
    FedEx,
    /// FlexLoRA (Bai et al., NeurIPS 2024): the mean of products, divided by SVD into what each
    /// client's rank holds. Clients have ranks 4, 8 and 16 in turn.
    Flex,
}

impl Rule {
    /// Whether a round ends in one weighted mean, along which a coordinator's Adam can step.
    pub(crate) fn gives_a_mean(self) -> bool {
        matches!(self, Self::Average | Self::Fair(_) | Self::Shared(..))
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Method {
    pub(crate) name: String,
    pub(crate) rule: Rule,
    /// FedProx's mu (Li et al., MLSys 2020); 0 is none.
    pub(crate) prox: f32,
    /// FFA-LoRA (Sun et al., ICLR 2024): A stays at its initial value and is not sent.
    pub(crate) freeze_a: bool,
    /// Passes over a client's own samples after the last round, kept by the client.
    pub(crate) tuned: usize,
    pub(crate) updates: PackedFormat,
    pub(crate) wire: WireFormat,
    /// Share of a round's clients that are lost before they send.
    pub(crate) lost: f64,
}

impl Method {
    fn new(name: &str, rule: Rule) -> Self {
        Self {
            name: name.to_owned(),
            rule,
            prox: 0.0,
            freeze_a: false,
            tuned: 0,
            updates: PackedFormat::F32,
            wire: WireFormat::F32,
            lost: 0.0,
        }
    }
}

/// All of them, those that others are compared with first.
pub(crate) fn all(kind: Kind) -> Vec<Method> {
    let paper = BalanceParams::default();
    let code = BalanceParams {
        exponent: Exponent::Code,
        ..paper
    };
    let mut out = vec![
        Method::new("centralised", Rule::Central),
        Method::new("local only", Rule::Alone),
        Method::new("FedAvg", Rule::Average),
        Method {
            prox: 0.01,
            ..Method::new("FedProx", Rule::Average)
        },
    ];
    for (name, exponent, cosine) in [
        ("paper, A+B", paper, Cosine::Both),
        ("code, A+B", code, Cosine::Both),
        ("paper, B", paper, Cosine::B),
        ("paper, BA", paper, Cosine::Product),
    ] {
        out.push(Method::new(
            &format!("PPLR personalized, {name}"),
            Rule::Personal(exponent, cosine),
        ));
        out.push(Method::new(
            &format!("PPLR shared, {name}"),
            Rule::Shared(exponent, cosine),
        ));
    }
    out.extend([
        Method {
            freeze_a: true,
            ..Method::new("FFA-LoRA", Rule::Average)
        },
        Method::new("FedEx-LoRA", Rule::FedEx),
        Method::new("FlexLoRA", Rule::Flex),
        Method::new("weights by loss", Rule::Fair(1.0)),
        Method {
            tuned: 1,
            ..Method::new("FedAvg, tuned locally", Rule::Average)
        },
        Method {
            tuned: 1,
            ..Method::new(
                "PPLR shared, tuned locally",
                Rule::Shared(paper, Cosine::Both),
            )
        },
    ]);
    let shared = Method::new("PPLR shared", Rule::Shared(paper, Cosine::Both));
    for (name, updates) in [
        ("int8", PackedFormat::Int8),
        ("int4", PackedFormat::Int4),
        ("top 5 %", PackedFormat::TopK(50)),
    ] {
        out.push(Method {
            name: format!("PPLR shared, updates {name}"),
            updates,
            ..shared.clone()
        });
    }
    for (name, wire) in [("f16", WireFormat::F16), ("int8", WireFormat::Int8)] {
        out.push(Method {
            name: format!("PPLR shared, activations {name}"),
            wire,
            ..shared.clone()
        });
    }
    // Of five silos a third is hardly a number.
    if kind == Kind::Users {
        for lost in [0.3, 0.5] {
            out.push(Method {
                name: format!("PPLR shared, {:.0} % lost", 100.0 * lost),
                lost,
                ..shared.clone()
            });
        }
    }
    out
}
