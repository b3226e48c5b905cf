(** Says on which axioms the theorem rests. *)
From Snowball Require Import Statement Snowball.
Goal snowball_theorem. Proof. exact snowball. Qed.
Print Assumptions snowball.
