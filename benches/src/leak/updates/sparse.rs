//! Which rows of a public dictionary a few sums of them are made of: rank-aware orthogonal matching
//! pursuit (Davies and Eldar, IEEE Trans. Inf. Theory 2012) for several sums over one support.

use nalgebra::{DMatrix, SymmetricEigen};

/// What an attacker looks through: one atom a token, all of one length.
#[derive(Clone, Debug)]
pub(super) struct Dictionary {
    /// `[atoms, width]`, each of length one.
    atoms: DMatrix<f64>,
}

/// Atoms that were found, and how much of the sums each of them explains, in units of noise.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// By position in the dictionary.
    pub(super) strength: Vec<(usize, f64)>,
}

impl Found {
    /// Strength of an atom; 0 when it was not found.
    pub(super) fn of(&self, atom: usize) -> f64 {
        self.strength
            .iter()
            .find(|s| s.0 == atom)
            .map_or(0.0, |s| s.1)
    }
}

/// Passes of finding and dropping.
const PASSES: usize = 3;
/// What is left of an atom beside those found, squared, below which it tells nothing of its own.
const DEPENDENT: f64 = 1e-5;

impl Dictionary {
    /// From rows of one width. A row of zeros stays one, and is never found.
    pub(super) fn new(rows: &[Vec<f64>]) -> Self {
        let width = rows.first().map_or(0, Vec::len);
        let mut atoms = DMatrix::zeros(rows.len(), width);
        for (i, row) in rows.iter().enumerate() {
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            for (j, v) in row.iter().enumerate() {
                atoms[(i, j)] = v * scale;
            }
        }
        Self { atoms }
    }

    /// The atoms of `sums` (`[sums, width]`, in units of their noise). Those in `given` are there
    /// in any case; `most` bounds what is found beside them.
    pub(super) fn search(&self, sums: &[Vec<f64>], given: &[usize], most: usize) -> Found {
        let mut chosen: Vec<usize> = vec![];
        let mut found = Found::default();
        for _ in 0..PASSES {
            let mut pursuit = Pursuit::new(self, sums);
            for atom in given.iter().chain(&chosen) {
                pursuit.take(*atom);
            }
            while chosen.len() < most {
                let Some(atom) = pursuit.best() else { break };
                pursuit.take(atom);
                chosen.push(atom);
            }
            found = self.strengths(sums, given, &chosen);
            let before = chosen.len();
            // Less than three times what noise alone would give an atom: it was taken in error.
            let floor = 3.0 * sums.len() as f64;
            found.strength.retain(|s| s.1 > floor);
            chosen = found.strength.iter().map(|s| s.0).collect();
            if chosen.len() == before {
                break;
            }
        }
        found
    }

    /// What leaving out each of `chosen` would leave unexplained.
    fn strengths(&self, sums: &[Vec<f64>], given: &[usize], chosen: &[usize]) -> Found {
        let all: Vec<usize> = chosen.iter().chain(given).copied().collect();
        let part = self.atoms.select_rows(&all);
        let mut gram = &part * part.transpose();
        for i in 0..all.len() {
            gram[(i, i)] += 1e-10;
        }
        let Some(inverse) = gram.cholesky().map(|c| c.inverse()) else {
            return Found::default();
        };
        let width = self.atoms.ncols();
        let sums = DMatrix::from_fn(sums.len(), width, |i, j| sums[i][j]);
        let weights = &inverse * (part * sums.transpose());
        let one = |i: usize| weights.row(i).norm_squared() / inverse[(i, i)];
        Found {
            strength: chosen
                .iter()
                .enumerate()
                .map(|(i, atom)| (*atom, one(i)))
                .collect(),
        }
    }
}

struct Pursuit<'a> {
    atoms: &'a DMatrix<f64>,
    /// What is left of the sums, `[sums, width]`.
    rest: DMatrix<f64>,
    /// Orthogonal directions of the atoms taken.
    basis: Vec<nalgebra::DVector<f64>>,
    /// Products of atoms with what is left, `[atoms, sums]`.
    products: DMatrix<f64>,
    /// Squared length of each atom beside those taken.
    lengths: Vec<f64>,
}

impl<'a> Pursuit<'a> {
    fn new(dictionary: &'a Dictionary, sums: &[Vec<f64>]) -> Self {
        let atoms = &dictionary.atoms;
        let rest = DMatrix::from_fn(sums.len(), atoms.ncols(), |i, j| sums[i][j]);
        Self {
            products: atoms * rest.transpose(),
            lengths: atoms.row_iter().map(|r| r.norm_squared()).collect(),
            basis: vec![],
            atoms,
            rest,
        }
    }

    fn take(&mut self, atom: usize) {
        let mut q = self.atoms.row(atom).transpose();
        for _ in 0..2 {
            for b in &self.basis {
                let dot = q.dot(b);
                q.axpy(-dot, b, 1.0);
            }
        }
        let length = q.norm();
        self.lengths[atom] = 0.0;
        if length * length < DEPENDENT {
            return;
        }
        q /= length;
        let along = self.atoms * &q;
        let held = &self.rest * &q;
        for (i, a) in along.iter().enumerate() {
            self.lengths[i] -= a * a;
            for (r, h) in held.iter().enumerate() {
                self.products[(i, r)] -= a * h;
            }
        }
        for (r, h) in held.iter().enumerate() {
            for j in 0..q.len() {
                self.rest[(r, j)] -= h * q[j];
            }
        }
        self.lengths[atom] = 0.0;
        self.basis.push(q);
    }

    /// The atom most of which lies in the directions that are left above the noise; none when
    /// nothing is.
    fn best(&self) -> Option<usize> {
        let free = self.rest.ncols().saturating_sub(self.basis.len());
        let sums = self.rest.nrows();
        // The largest eigenvalue that noise of one unit gives (Marchenko and Pastur).
        let edge = ((free as f64).sqrt() + (sums as f64).sqrt()).powi(2);
        let eigen = SymmetricEigen::new(&self.rest * self.rest.transpose());
        let kept: Vec<usize> = (0..sums)
            .filter(|i| eigen.eigenvalues[*i] > 1.2 * edge)
            .collect();
        if kept.is_empty() || free == 0 {
            return None;
        }
        let mut turn = DMatrix::zeros(sums, kept.len());
        for (k, i) in kept.iter().enumerate() {
            let scale = 1.0 / eigen.eigenvalues[*i].sqrt();
            turn.set_column(k, &(eigen.eigenvectors.column(*i) * scale));
        }
        let seen = &self.products * turn;
        let mut best: Option<(usize, f64)> = None;
        for (i, length) in self.lengths.iter().enumerate() {
            if *length < DEPENDENT {
                continue;
            }
            let score = seen.row(i).norm_squared() / length;
            if best.is_none_or(|b| score > b.1) {
                best = Some((i, score));
            }
        }
        best.map(|b| b.0)
    }
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::Seed;

    use super::*;

    fn dictionary(atoms: usize, width: usize) -> Vec<Vec<f64>> {
        let mut rng = Seed::from_u64(5).rng();
        (0..atoms)
            .map(|_| (0..width).map(|_| f64::from(rng.normal())).collect())
            .collect()
    }

    /// Sums of these atoms with weights from a seed, and noise of one unit.
    fn sums(rows: &[Vec<f64>], of: &[usize], many: usize, signal: f64) -> Vec<Vec<f64>> {
        let mut rng = Seed::from_u64(6).rng();
        (0..many)
            .map(|_| {
                let mut sum: Vec<f64> = rows[0].iter().map(|_| f64::from(rng.normal())).collect();
                for atom in of {
                    let weight = signal * f64::from(rng.normal());
                    let parts = rows[*atom].iter().map(|v| weight * v);
                    sum.iter_mut().zip(parts).for_each(|(s, p)| *s += p);
                }
                sum
            })
            .collect()
    }

    #[test]
    fn finds_what_sums_are_made_of() {
        let rows = dictionary(300, 64);
        let of: Vec<usize> = (0..24).map(|i| 7 * i + 3).collect();
        let found = Dictionary::new(&rows).search(&sums(&rows, &of, 8, 1e3), &of[..2], 60);
        let mut atoms: Vec<usize> = found.strength.iter().map(|s| s.0).collect();
        atoms.sort_unstable();
        assert_eq!(atoms, of[2..]);
        assert!(found.of(of[2]) > 1e3 && found.of(0) == 0.0);
    }

    #[test]
    fn noise_alone_has_no_atoms() {
        let rows = dictionary(300, 64);
        let found = Dictionary::new(&rows).search(&sums(&rows, &[], 8, 1.0), &[1], 60);
        assert_eq!(found.strength, []);
    }
}
