(** Says on which axioms the theorems rest. *)
From Snowball Require Import Statement UniversalityStatement Snowball Universality Blindness.
Goal snowball_theorem. Proof. exact snowball. Qed.
Goal behaviours_theorem. Proof. exact behaviours. Qed.
Goal universality_theorem. Proof. exact universality. Qed.
Goal robust_theorem. Proof. exact robust. Qed.
Goal blindness_theorem. Proof. exact blindness. Qed.
Definition all := (snowball, behaviours, universality, robust, blindness).
Print Assumptions all.
