(** The stream of the model after any layers; of Theorem 1, with and without the target. *)
From Coq Require Import Reals Lra Lia List Arith Psatz FunctionalExtensionality.
Import ListNotations.
From Snowball Require Import Statement Vectors Kernel Model.
Open Scope R_scope.

Lemma run_snoc M ls l t : run M (ls ++ [l]) t = block M l (run M ls t).
Proof. unfold run. rewrite fold_left_app. reflexivity. Qed.
Lemma first_layers {A} (f : nat -> A) l m : (l <= m)%nat -> firstn l (map f (seq 0 m)) = map f (seq 0 l).
Proof.
  intros H. replace m with (l + (m - l))%nat by lia.
  rewrite seq_app, map_app, firstn_app, map_length, seq_length, Nat.sub_diag.
  rewrite firstn_O, app_nil_r. apply firstn_all2. rewrite map_length, seq_length; lia.
Qed.
Lemma without_later l ls x : (l < length ls)%nat -> without l (ls ++ [x]) = without l ls ++ [x].
Proof.
  intros H. unfold without. rewrite firstn_app, skipn_app.
  replace (l - length ls)%nat with 0%nat by lia. replace (S l - length ls)%nat with 0%nat by lia.
  rewrite firstn_O, app_nil_r, app_assoc. reflexivity.
Qed.
Lemma without_last ls x : without (length ls) (ls ++ [x]) = ls.
Proof.
  unfold without. rewrite firstn_app, Nat.sub_diag, firstn_all, firstn_O, app_nil_r,
    skipn_all2 by (rewrite app_length; simpl; lia).
  apply app_nil_r.
Qed.
Lemma without_none l ls : (length ls <= l)%nat -> without l ls = ls.
Proof. intros H. unfold without. rewrite firstn_all2, skipn_all2 by lia. apply app_nil_r. Qed.

Section Runs.
Variable P : parameters.
Notation V := (V P). Notation n := (nodes P). Notation N := (longest P). Notation hd := (head_half P).
Notation m := (switches P). Notation ang := (angle P).
Hypotheses (Heps : 0 <= rms_eps P) (Htheta : (2 <= theta P < 2 ^ hd)%nat) (Hz : 0 < zeta P) (Hgroup : (1 <= group_size P)%nat)
  (Hwhich : forall l, (which P l < m)%nat) (Henergy : forall l, 0 <= energy P l)
  (Hnode : forall u, (u < n)%nat -> (0 < length (node P u) <= N)%nat /\ Forall (fun a => a < V)%nat (node P u)).
Variable t : list nat.
Hypotheses (HV : (0 < V)%nat) (Ht : Forall (fun a => a < V)%nat t).
Definition token (i : nat) : nat := nth i t 0%nat.

Lemma token_V i : (token i < V)%nat.
Proof.
  unfold token. destruct (Nat.lt_ge_cases i (length t)).
  - rewrite Forall_forall in Ht. apply Ht, nth_In; auto.
  - rewrite nth_overflow; auto.
Qed.
Lemma layers_first l : (l <= S (last P))%nat -> firstn l (layers (model P)) = map (lay P) (seq 0 l).
Proof. apply first_layers. Qed.
Lemma snoc l : map (lay P) (seq 0 (S l)) = map (lay P) (seq 0 l) ++ [lay P l].
Proof. rewrite seq_S, map_app. reflexivity. Qed.

(** * One more layer *)
Lemma run_none : run (model P) [] t = plain P 0 (start P) token.
Proof. reflexivity. Qed.
Lemma run_step ls l A s : l <> last P -> dot m s s = energy P l ->
  run (model P) ls t = plain P A s token
    -> run (model P) (ls ++ [lay P l]) t = plain P (A + ang l) (moved P s l) token.
Proof. intros Hl Hs E. rewrite run_snoc, E. apply steer_block; auto using token_V. Qed.
Lemma run_last ls A s : dot m s s = energy P (last P) ->
  run (model P) ls t = plain P A s token ->
  run (model P) (ls ++ [lay P (last P)]) t = final P (A + ang (last P)) (moved P s (last P)) token.
Proof. intros Hs E. rewrite run_snoc, E. apply reader_block; auto using token_V. Qed.

(** * One switch, as in Theorem 1: with all layers it goes through the sizes [sw]. *)
Definition one (x : R) : nat -> R := fun j => if (j =? 0)%nat then x else 0.
Variable sw : nat -> R.
Hypotheses (Hm : m = 1%nat) (H0 : forall l, which P l = 0%nat) (Hstart : start P = one (sw 0))
  (Hgain : forall l, gain P l = sw (S l) / sw l) (Hsize : forall l, energy P l = sw l * sw l) (Hsw : forall l,
    sw l <> 0).
Lemma dot_one x y : dot m (one x) (one y) = x * y.
Proof. rewrite Hm. unfold dot, one. simpl. ring. Qed.
Lemma moved_one x l : moved P (one x) l = one (gain P l * x).
Proof. apply functional_extensionality. intros j. unfold moved, one. rewrite H0. destruct (j =? 0)%nat; auto.
Qed.
Lemma gained l : gain P l * sw l = sw (S l).
Proof. rewrite Hgain. field. auto. Qed.

Lemma run_before l : (l <= last P)%nat
  -> run (model P) (map (lay P) (seq 0 l)) t = plain P (sum l ang) (one (sw l)) token.
Proof.
  induction l; intros Hl; [rewrite <- Hstart; reflexivity|]. rewrite snoc.
  rewrite (run_step _ l (sum l ang) (one (sw l))); [|lia|rewrite dot_one, Hsize; ring|apply IHl; lia].
  rewrite moved_one, gained. reflexivity.
Qed.
Lemma run_all : run (model P) (map (lay P) (seq 0 (S (last P)))) t = final P (sum (S (last P)) ang) (one (sw
  (S (last P)))) token.
Proof.
  rewrite snoc, (run_last _ (sum (last P) ang) (one (sw (last P)))); [|rewrite dot_one, Hsize;
    ring|apply run_before; auto].
  rewrite moved_one, gained. reflexivity.
Qed.

Variable target : nat.
Hypotheses (Htarget : (target < last P)%nat) (Hflip : sw (S target) = - sw target).
(** lem:mirror *)
Lemma run_without_before k : (target < k <= last P)%nat ->
  run (model P) (without target (map (lay P) (seq 0 k))) t = plain P (sum k ang - ang target) (one
    (- sw k)) token.
Proof.
  induction k; intros Hk; [lia|]. rewrite snoc. destruct (Nat.eq_dec k target) as [->|Hne].
  - replace target with (length (map (lay P) (seq 0 target))) at 1 by (rewrite map_length, seq_length; auto).
    rewrite without_last, run_before by lia. rewrite Hflip. simpl sum. f_equal; [ring|f_equal; ring].
  - rewrite without_later by (rewrite map_length, seq_length; lia).
    rewrite (run_step _ k (sum k ang - ang target) (one (- sw k))); [|lia|rewrite dot_one, Hsize;
      ring|apply IHk; lia].
    rewrite moved_one, <- gained. simpl sum. f_equal; [ring|f_equal; ring].
Qed.
Lemma run_without : run (model P) (without target (map (lay P) (seq 0 (S (last P))))) t
  = final P (sum (S (last P)) ang - ang target) (one (- sw (S (last P)))) token.
Proof.
  rewrite snoc, without_later by (rewrite map_length, seq_length; lia).
  rewrite (run_last _ (sum (last P) ang - ang target) (one (- sw (last P)))); [|rewrite dot_one, Hsize;
    ring|apply run_without_before; lia].
  rewrite moved_one, <- (gained (last P)). simpl sum. f_equal; [ring|f_equal; ring].
Qed.
End Runs.
