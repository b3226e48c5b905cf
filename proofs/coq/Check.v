(** Says on which axioms the theorems rest. *)
From Snowball Require Import Statement Snowball.
From Snowball Require Import UniversalityStatement Universality Blindness.
From Snowball Require Import IrrelevanceStatement Irrelevance.
Goal snowball_theorem. Proof. exact snowball. Qed.
Goal behaviours_theorem. Proof. exact behaviours. Qed.
Goal universality_theorem. Proof. exact universality. Qed.
Goal robust_theorem. Proof. exact robust. Qed.
Goal blindness_theorem. Proof. exact blindness. Qed.
Goal irrelevance_theorem. Proof. exact irrelevance. Qed.
Goal choices_theorem. Proof. exact choices. Qed.
Definition all := (snowball, behaviours, universality, robust, blindness, irrelevance, choices).
Print Assumptions all.
