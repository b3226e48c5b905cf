(** Says on which axioms the theorems rest. Only the files that state them are imported, and full names
    are used, so that no file of proofs can change what is meant. *)
From Coq Require Import Reals List.
Import ListNotations.
From Snowball Require Import Statement UniversalityStatement IrrelevanceStatement.
From Snowball Require Snowball Universality Blindness Irrelevance Necessity.
Open Scope R_scope.

Goal Snowball.Statement.snowball_theorem.
Proof. exact Snowball.Snowball.snowball. Qed.
Goal Snowball.UniversalityStatement.behaviours_theorem.
Proof. exact Snowball.Universality.behaviours. Qed.
Goal Snowball.UniversalityStatement.universality_theorem.
Proof. exact Snowball.Universality.universality. Qed.
Goal Snowball.UniversalityStatement.robust_theorem.
Proof. exact Snowball.Universality.robust. Qed.
Goal Snowball.UniversalityStatement.blindness_theorem.
Proof. exact Snowball.Blindness.blindness. Qed.
Goal Snowball.IrrelevanceStatement.irrelevance_theorem.
Proof. exact Snowball.Irrelevance.irrelevance. Qed.
Goal Snowball.IrrelevanceStatement.choices_theorem.
Proof. exact Snowball.Irrelevance.choices. Qed.

(** The hypotheses of Theorem 1 are needed, and can be met. *)
Goal forall M ls p D part,
  (forall r, In r D -> says M ls p (bos :: prompt r) (ended D (part r))) ->
  forall t a b, wants D part t a -> wants D part t b -> a = b.
Proof. exact Snowball.Necessity.consistency_is_needed. Qed.
Goal forall M l t i, 0 < norm (width M) (entering M l t i) ->
  0 < norm (width M) (entering M (S l) t i) -> score M l t i <= 2.
Proof. exact Snowball.Necessity.score_at_most_2. Qed.
Goal forall V r, label r <> [] -> distractor r <> [] -> label r <> distractor r ->
  Forall (fun a => 2 <= a < V)%nat (prompt r ++ label r ++ distractor r) -> dataset V [r].
Proof. exact Snowball.Necessity.one_row. Qed.

Definition all := (Snowball.Snowball.snowball, Snowball.Universality.behaviours,
  Snowball.Universality.universality, Snowball.Universality.robust, Snowball.Blindness.blindness,
  Snowball.Irrelevance.irrelevance, Snowball.Irrelevance.choices,
  Snowball.Necessity.consistency_is_needed, Snowball.Necessity.score_at_most_2,
  Snowball.Necessity.one_row).
Print Assumptions all.
